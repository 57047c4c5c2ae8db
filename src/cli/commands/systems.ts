import type { Command } from 'commander';
import type { PairedSystem } from '#src/agent/api.ts';
import { type Runner, withSuggestions } from '../command.ts';
import { type Column, formatDuration, formatTable, formatWhen } from '../format.ts';
import { duration } from './options.ts';

function columns(now_ms: number): Column<PairedSystem>[] {
  return [
    { title: 'name', value: (system) => system.name, least: 12 },
    { title: 'address', value: (system) => `${system.address}:${system.port}`, least: 20 },
    { title: 'status', value: (system) => system.status },
    { title: 'rtt', value: (system) => (system.rtt_ms === null ? '-' : formatDuration(system.rtt_ms)), align: 'right' },
    { title: 'certificate ends', value: (system) => formatWhen(system.certificate_expires_at, now_ms), least: 16 },
  ];
}

export function addSystems(program: Command, runner: Runner): void {
  const systems = program
    .command('systems')
    .description('List this system and those it is paired with')
    .addHelpText('after', '\nExample:\n  ums systems\n');
  runner.action(systems, (cli) =>
    cli.withAgent(async (client) => {
      const [self, paired] = await Promise.all([client.system(), client.systems()]);
      cli.show({ self, systems: paired }, () => {
        if (cli.quiet) return paired.map((each) => `${each.name}\n`).join('');
        const engines = self.engines.map((each) =>
          each.available ? `${each.engine} ${each.version}` : `no ${each.engine}`,
        );
        const here = `${cli.style.bold(self.name)} (here, ${self.peer_address}:${self.peer_port}): ${engines.join(', ')}\n`;
        if (paired.length === 0) return `${here}Paired with no other system yet: ums pair invite --help\n`;
        const problems = paired.filter((each) => each.problem !== null);
        const notes = problems.map((each) => `${cli.style.yellow('!')} ${each.name}: ${each.problem}\n`);
        return `${here}\n${formatTable(columns(cli.io.now_ms()), paired, cli.io.columns())}${notes.join('')}`;
      });
      return 0;
    }),
  );
}

export function addPair(program: Command, runner: Runner): void {
  const pair = program.command('pair').description('Make, renew and end the trust between two systems');
  const invite = pair
    .command('invite')
    .description('Print a one-time token that lets one other system pair with this one')
    .option('--ttl <duration>', 'how long the token is good for', duration, 900_000)
    .addHelpText('after', '\nExample:\n  on alpha:  ums pair invite\n  on beta:   ums pair join TOKEN\n');
  runner.action(invite, (cli, options: { ttl: number }) =>
    cli.withAgent(async (client) => {
      const invitation = await client.invite(Math.max(1, Math.round(options.ttl / 1000)));
      cli.show(invitation, () => {
        if (cli.quiet) return invitation.token;
        const left = formatWhen(invitation.expires_at, cli.io.now_ms());
        return `On the other system run (once, it expires ${left}):\n\n  ums pair join ${invitation.token}\n`;
      });
      return 0;
    }),
  );
  const join = pair
    .command('join')
    .description('Pair with the system that made the token')
    .argument('<token>', 'what `ums pair invite` printed there')
    .addHelpText('after', '\nExample:\n  ums pair join TOKEN\n');
  runner.action(join, (cli, token: string) =>
    cli.withAgent(async (client) => {
      const system = await client.join(token);
      cli.show(system, () => `Paired with ${cli.style.bold(system.name)} (${system.address}:${system.port}).`);
      return 0;
    }),
  );
  addPairEnds(pair, runner);
}

function addPairEnds(pair: Command, runner: Runner): void {
  const revoke = pair
    .command('revoke')
    .description('End the pairing: the other system is refused from now on')
    .argument('<name>', 'a paired system')
    .addHelpText('after', '\nExample:\n  ums pair revoke beta\n');
  runner.action(revoke, (cli, name: string) =>
    cli.withAgent(async (client) => {
      await withSuggestions(client, { system: name }, () => client.revoke(name));
      cli.show({ revoked: name }, () => `${name} is revoked: it is refused before anything it sends is read.`);
      return 0;
    }),
  );
  const rotate = pair
    .command('rotate')
    .description('Exchange fresh keys and certificates with a paired system')
    .argument('<name>', 'a paired system')
    .addHelpText('after', '\nExample:\n  ums pair rotate beta\n');
  runner.action(rotate, (cli, name: string) =>
    cli.withAgent(async (client) => {
      const system = await withSuggestions(client, { system: name }, () => client.rotate(name));
      const ends = formatWhen(system.certificate_expires_at, cli.io.now_ms());
      cli.show(system, () => `Fresh keys are exchanged with ${system.name}; the certificate ends ${ends}.`);
      return 0;
    }),
  );
}
