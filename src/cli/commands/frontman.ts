import { type Command, Option } from 'commander';
import type { Frontman } from '#src/agent/api.ts';
import { type Runner, withSuggestions } from '../command.ts';
import { type Column, formatTable } from '../format.ts';
import { duration, type Endpoint, endpoint, port } from './options.ts';

const COLUMNS: Column<Frontman>[] = [
  { title: 'id', value: (each) => each.id, least: 64 },
  { title: 'service', value: (each) => each.service, least: 8 },
  { title: 'listens at', value: (each) => `${each.listen.address}:${each.listen.port}`, least: 14 },
  { title: 'port', value: (each) => String(each.port), align: 'right' },
  { title: 'mode', value: (each) => each.mode },
  { title: 'status', value: (each) => each.status },
  { title: 'goes to', value: (each) => each.target },
  { title: 'open', value: (each) => String(each.connections), align: 'right' },
  { title: 'waiting', value: (each) => String(each.waiting), align: 'right' },
];

interface AddFlags {
  listen: Endpoint;
  port: number;
  mode: 'tcp' | 'http';
  holdLimit: number;
}

export function addFrontman(program: Command, runner: Runner): void {
  const frontman = program
    .command('frontman')
    .description('Give a service an address that stays: traffic waits there while it moves, and follows it');
  const add = frontman
    .command('add')
    .description('Put a Frontman in front of a service')
    .argument('<service>', 'NAME, ID or ENGINE:NAME')
    .requiredOption('--listen <address:port>', 'where clients connect, for example 0.0.0.0:6379', endpoint)
    .requiredOption('--port <port>', 'the port inside the service', port)
    .addOption(
      new Option('--mode <mode>', 'plain TCP, or HTTP request by request').choices(['tcp', 'http']).default('tcp'),
    )
    .addOption(
      new Option('--hold-limit <duration>', 'how long traffic may wait before it is refused, 10m at most')
        .argParser(duration)
        .default(30_000, '30s'),
    )
    .addHelpText('after', '\nExample:\n  ums frontman add redis --listen 0.0.0.0:6379 --port 6379\n');
  runner.action(add, (cli, service: string, flags: AddFlags) =>
    cli.withAgent(async (client) => {
      const made = await withSuggestions(client, { service }, () =>
        client.addFrontman({
          service,
          listen: flags.listen,
          port: flags.port,
          mode: flags.mode,
          holdLimit_ms: flags.holdLimit,
        }),
      );
      const where = `${made.listen.address}:${made.listen.port}`;
      cli.show(made, () =>
        cli.quiet ? made.id : `Frontman ${made.id}: clients reach ${service} at ${where} from now on.`,
      );
      return 0;
    }),
  );
  const list = frontman
    .command('ls')
    .description('List the Frontmen')
    .addHelpText('after', '\nExample:\n  ums frontman ls\n');
  runner.action(list, (cli) =>
    cli.withAgent(async (client) => {
      const all = await client.frontmen();
      cli.show(all, () => (all.length === 0 ? 'No Frontman.' : formatTable(COLUMNS, all, cli.io.columns())));
      return 0;
    }),
  );
  const remove = frontman
    .command('rm')
    .description('Remove a Frontman; its clients are disconnected')
    .argument('<id>', 'of the Frontman')
    .addHelpText('after', '\nExample:\n  ums frontman rm f-1\n');
  runner.action(remove, (cli, id: string) =>
    cli.withAgent(async (client) => {
      await client.removeFrontman(id);
      cli.show({ id, done: 'removed' }, () => (cli.quiet ? '' : `Frontman ${id} is removed.`));
      return 0;
    }),
  );
}
