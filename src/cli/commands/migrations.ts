import type { Command } from 'commander';
import type { PredictionErrors } from '#src/agent/api.ts';
import type { Migration } from '#src/coordination/schema.ts';
import type { AgentClient } from '../client.ts';
import { type Cli, type Runner, usage } from '../command.ts';
import { conclude, follow } from '../follow.ts';
import { type Column, formatBytes, formatDuration, formatTable, formatWhen } from '../format.ts';
import { renderChoices, renderTimeline, statusOf } from '../outcome.ts';
import { renderError } from '../render-error.ts';
import { UmsError } from '#src/telemetry/errors.ts';

function columns(now_ms: number): Column<Migration>[] {
  return [
    { title: 'id', value: (each) => each.id, least: 22 },
    { title: 'service', value: (each) => each.service, least: 8 },
    { title: 'way', value: (each) => `${each.source} → ${each.destination}`, least: 13 },
    { title: 'state', value: (each) => (each.in_doubt ? 'in doubt' : each.state) },
    {
      title: 'downtime',
      value: (each) => (each.downtime_ms === null ? '-' : formatDuration(each.downtime_ms)),
      align: 'right',
    },
    { title: 'began', value: (each) => formatWhen(each.started_at, now_ms), least: 8 },
  ];
}

export function addMigrations(program: Command, runner: Runner): void {
  const list = program
    .command('migrations')
    .description('List the migrations this system took part in')
    .option('--active', 'only those that have not ended', false)
    .addHelpText('after', '\nExample:\n  ums migrations --active\n');
  runner.action(list, (cli, options: { active: boolean }) =>
    cli.withAgent(async (client) => {
      const all = (await client.migrations()).toSorted((a, b) => b.started_at - a.started_at);
      const shown = options.active ? all.filter((each) => each.state !== 'done' && each.state !== 'aborted') : all;
      cli.show(shown, () => {
        if (cli.quiet) return shown.map((each) => `${each.id}\n`).join('');
        if (shown.length === 0) return options.active ? 'No migration is under way.' : 'No migration yet.';
        return formatTable(columns(cli.io.now_ms()), shown, cli.io.columns());
      });
      return 0;
    }),
  );
  addShow(program, runner);
  const cancel = program
    .command('cancel')
    .description('Cancel a migration that has not handed over yet; the service stays at its source')
    .argument('<id>', 'of the migration')
    .addHelpText('after', '\nExample:\n  ums cancel m-0123456789abcdefghij\n');
  runner.action(cancel, (cli, id: string) =>
    cli.withAgent(async (client) => {
      const migration = await client.cancel(id);
      cli.show(migration, () => `Asked to cancel; it is in state ${migration.state}. To look: ums show ${id} --follow`);
      return 0;
    }),
  );
  addRecover(program, runner);
  addPredictions(program, runner);
}

function addShow(program: Command, runner: Runner): void {
  const show = program
    .command('show')
    .description('Show one migration with its timeline')
    .argument('<id>', 'of the migration')
    .option('--follow', 'watch it to its end, like `ums migrate`', false)
    .addHelpText('after', '\nExample:\n  ums show m-0123456789abcdefghij --follow\n');
  runner.action(show, (cli, id: string, options: { follow: boolean }) =>
    cli.withAgent(async (client) => {
      const migration = await client.migration(id);
      if (options.follow) {
        const ended = migration.state === 'done' || migration.state === 'aborted';
        return ended ? conclude(cli, client, migration) : follow(cli, client, migration);
      }
      cli.show(migration, () => renderMigration(cli, migration));
      return 0;
    }),
  );
}

function renderMigration(cli: Cli, migration: Migration): string {
  const rows: [string, string][] = [
    ['service', `${migration.service} (${migration.engine})`],
    ['way', `${migration.source} → ${migration.destination}; this system is the ${migration.role}`],
    ['how', `${migration.technique}, ${migration.approach}`],
    ['state', migration.in_doubt ? `${migration.state}, IN DOUBT` : migration.state],
    ['began', formatWhen(migration.started_at, cli.io.now_ms())],
    [
      'downtime',
      migration.downtime_ms === null ? '-' : `${formatDuration(migration.downtime_ms)} (measured by the agents)`,
    ],
    ['total', migration.total_ms === null ? '-' : formatDuration(migration.total_ms)],
    ['bytes', `${formatBytes(migration.state_bytes)} of state, ${formatBytes(migration.bytes_on_wire)} on the wire`],
  ];
  const columnsHere = cli.io.columns();
  return [
    `${cli.style.bold(migration.id)}\n`,
    ...rows.map(([label, value]) => `  ${label.padEnd(9)} ${value}\n`),
    renderTimeline(migration, cli.style, columnsHere),
    migration.error === null ? '' : renderError(UmsError.fromReport(migration.error), cli.style, columnsHere),
    migration.in_doubt && migration.role === 'source' ? `\n${renderChoices(migration)}` : '',
  ].join('');
}

function share(value: PredictionErrors['total']): string {
  return value === null ? '-' : `${Math.round(value.median * 100)} % (90 %: ${Math.round(value.p90 * 100)} %)`;
}

function addPredictions(program: Command, runner: Runner): void {
  const predictions = program
    .command('predictions')
    .description('How far the predictions of this system’s migrations were off')
    .addHelpText('after', '\nExample:\n  ums predictions\n');
  runner.action(predictions, (cli) =>
    cli.withAgent(async (client) => {
      const errors = await client.predictions();
      cli.show(errors, () => {
        if (errors.length === 0) return 'No migration has ended yet.';
        return formatTable<PredictionErrors>(
          [
            { title: 'technique', value: (each) => each.technique },
            { title: 'moves', value: (each) => String(each.migrations), align: 'right' },
            { title: 'downtime off by', value: (each) => share(each.downtime), align: 'right' },
            { title: 'total off by', value: (each) => share(each.total), align: 'right' },
            { title: 'bytes off by', value: (each) => share(each.bytes), align: 'right' },
          ],
          errors,
          cli.io.columns(),
        );
      });
      return 0;
    }),
  );
}

interface RecoverFlags {
  thawSource?: boolean;
  dropSource?: boolean;
}

function addRecover(program: Command, runner: Runner): void {
  const recover = program
    .command('recover')
    .description('Settle a migration whose peer was lost during the hand-over; without a choice, explain both')
    .argument('<id>', 'of the migration')
    .option('--thaw-source', 'the service runs here again: TWO copies if the peer does run it')
    .option('--drop-source', 'the copy here is given up: NO copy if the peer does not run it')
    .addHelpText(
      'after',
      '\nExamples:\n  ums recover m-0123456789abcdefghij\n  ums recover m-0123456789abcdefghij --thaw-source\n',
    );
  runner.action(recover, (cli, id: string, flags: RecoverFlags) =>
    cli.withAgent(async (client) => {
      if (flags.thawSource === true && flags.dropSource === true) {
        throw usage('--thaw-source and --drop-source exclude each other.', {
          mend: `Read about both: ums recover ${id}`,
        });
      }
      const migration = await client.migration(id);
      if (flags.thawSource === true) return settle(cli, client, id, 'thaw-source');
      if (flags.dropSource === true) return settle(cli, client, id, 'drop-source');
      return explain(cli, migration);
    }),
  );
}

async function settle(
  cli: Cli,
  client: AgentClient,
  id: string,
  choice: 'thaw-source' | 'drop-source',
): Promise<number> {
  const migration = await client.recover(id, choice);
  cli.show(migration, () => `${choice} is under way; the migration is in state ${migration.state}.`);
  return 0;
}

function explain(cli: Cli, migration: Migration): number {
  const options = [
    { choice: 'thaw-source', consequence: 'runs here again; two copies if the destination runs it' },
    { choice: 'drop-source', consequence: 'given up here; no copy if the destination does not run it' },
  ];
  cli.show(
    {
      id: migration.id,
      status: statusOf(migration),
      in_doubt: migration.in_doubt,
      choices: migration.in_doubt ? options : [],
    },
    () =>
      migration.in_doubt
        ? renderChoices(migration)
        : `${migration.id} is not in doubt (state ${migration.state}): there is nothing for an operator to choose.`,
  );
  return 0;
}
