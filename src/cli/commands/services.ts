import type { Command } from 'commander';
import type { Service, ServiceDetail } from '#src/agent/api.ts';
import { type Cli, type Runner, usage, withSuggestions } from '../command.ts';
import { type Column, formatBytes, formatTable, wrap } from '../format.ts';

const COLUMNS: Column<Service>[] = [
  { title: 'name', value: (service) => service.name, least: 12 },
  { title: 'engine', value: (service) => service.engine },
  { title: 'state', value: (service) => (service.migration === null ? service.state : `${service.state} (moving)`) },
  { title: 'pid', value: (service) => (service.pid === 0 ? '-' : String(service.pid)), align: 'right' },
  { title: 'image', value: (service) => service.image, least: 10 },
  { title: 'ports', value: (service) => service.ports.join(','), least: 8 },
];

export function addServices(program: Command, runner: Runner): void {
  const list = program
    .command('ls')
    .description('List the services on this system')
    .addHelpText('after', '\nExample:\n  ums ls\n');
  runner.action(list, (cli) =>
    cli.withAgent(async (client) => {
      const services = await client.services();
      cli.show(services, () => {
        if (cli.quiet) return services.map((service) => `${service.name}\n`).join('');
        if (services.length === 0) return 'No service runs here under an engine that ums knows (podman, runc).';
        return formatTable(COLUMNS, services, cli.io.columns());
      });
      return 0;
    }),
  );
  const inspect = program
    .command('inspect')
    .description('Show all that ums knows of a service')
    .argument('<service>', 'NAME, ID or ENGINE:NAME')
    .addHelpText('after', '\nExample:\n  ums inspect redis\n');
  runner.action(inspect, (cli, service: string) =>
    cli.withAgent(async (client) => {
      const detail = await withSuggestions(client, { service }, () => client.service(service));
      cli.show(detail, () => renderDetail(cli, detail));
      return 0;
    }),
  );
  addControl(program, runner, 'stop', 'Stop a service (refused while it is being moved)', 'stopped');
  addControl(program, runner, 'start', 'Start a stopped service (refused while it is being moved)', 'started');
  addRemove(program, runner);
}

function renderDetail(cli: Cli, detail: ServiceDetail): string {
  const rows: [string, string][] = [
    ['engine', detail.engine],
    ['id', detail.id],
    ['state', detail.state],
    ['process', detail.pid === 0 ? '-' : String(detail.pid)],
    ['image', detail.image],
    ['ports', detail.ports.join(', ') || '-'],
    ['created', detail.created_at],
    ['memory', formatBytes(detail.memory_bytes)],
    ['migration', detail.migration ?? 'none'],
  ];
  const lines = [cli.style.bold(detail.name), ...rows.map(([label, value]) => `  ${label.padEnd(10)} ${value}`)];
  lines.push('  moves with it:');
  for (const tree of detail.trees) lines.push(`    ${tree.id} (${tree.kind}): ${tree.path}`);
  if (detail.trees.length === 0) lines.push('    no files');
  if (detail.losses.length > 0) lines.push(cli.style.yellow('  cannot be kept:'));
  for (const loss of detail.losses) {
    lines.push(...wrap(loss, cli.io.columns() - 6).map((line, at) => `    ${at === 0 ? '-' : ' '} ${line}`));
  }
  return `${lines.join('\n')}\n`;
}

function addControl(program: Command, runner: Runner, action: 'stop' | 'start', what: string, done: string): void {
  const command = program
    .command(action)
    .description(what)
    .argument('<service>', 'NAME, ID or ENGINE:NAME')
    .addHelpText('after', `\nExample:\n  ums ${action} redis\n`);
  runner.action(command, (cli, service: string) =>
    cli.withAgent(async (client) => {
      await withSuggestions(client, { service }, () => client.control(service, action));
      cli.show({ service, done }, () => (cli.quiet ? '' : `${service} is ${done}.`));
      return 0;
    }),
  );
}

function addRemove(program: Command, runner: Runner): void {
  const remove = program
    .command('rm')
    .description('Remove a service (refused while it is being moved)')
    .argument('<service>', 'NAME, ID or ENGINE:NAME')
    .option('--force', 'also when it runs', false)
    .addHelpText('after', '\nExample:\n  ums stop redis && ums rm redis\n');
  runner.action(remove, (cli, service: string, options: { force: boolean }) =>
    cli.withAgent(async (client) => {
      const detail = await withSuggestions(client, { service }, () => client.service(service));
      if (detail.state === 'running' && !options.force) {
        throw usage(`${service} runs.`, { mend: 'Stop it first (ums stop), or say --force.' });
      }
      await client.control(service, 'remove');
      cli.show({ service, done: 'removed' }, () => (cli.quiet ? '' : `${service} is removed.`));
      return 0;
    }),
  );
}
