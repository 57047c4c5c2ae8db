import { type Command, Option } from 'commander';
import {
  approachSchema,
  migrateOptionsSchema,
  techniqueSchema,
  type CheckResult,
  type TechniqueRow,
} from '#src/coordination/schema.ts';
import { hostEngineSchema } from '#src/drivers/specification.ts';
import { toUmsError, type UmsError } from '#src/telemetry/errors.ts';
import type { AgentClient } from '../client.ts';
import { type Cli, type Runner, withSuggestions, usage } from '../command.ts';
import { follow } from '../follow.ts';
import { formatBytes, formatDuration, formatTable, wrap } from '../format.ts';
import { refusedEvent, resultEvent } from '../outcome.ts';
import { count, duration, rate } from './options.ts';

interface ServiceOptions {
  keepSourceStopped: boolean;
  timeout?: number;
  healthTimeout?: number;
  bindMounts: string;
  sharedVolume?: string[];
  technique: string;
  approach: string;
  maxDowntime?: number;
  maxRounds?: number;
  onStall?: string;
  rateLimit?: number;
  engine?: string;
}
interface MigrateFlags extends ServiceOptions {
  to: string;
  dryRun: boolean;
  detach: boolean;
}

function withServiceOptions(command: Command): Command {
  return command
    .argument('<service>', 'NAME, ID or ENGINE:NAME on this system')
    .requiredOption('--to <system>', 'the paired system it goes to')
    .addOption(
      new Option(
        '--bind-mounts <how>',
        'paths of this host that it mounts: do not move it, copy them, or expect them there',
      )
        .choices(['refuse', 'copy', 'expect'])
        .default('refuse'),
    )
    .option(
      '--shared-volume <name>',
      'a volume that both systems mount from the same storage: it is not copied (may be repeated)',
      (name: string, names: string[] | undefined) => [...(names ?? []), name],
    )
    .addOption(
      new Option('--technique <how>', 'when its memory travels; auto lets the agent choose from what it measures')
        .choices(['auto', ...techniqueSchema.options])
        .default('auto'),
    )
    .addOption(
      new Option('--approach <how>', 'how much authority over both systems it takes; auto lets the agent choose')
        .choices(['auto', ...approachSchema.options])
        .default('auto'),
    )
    .option('--max-downtime <duration>', 'downtime that rounds of copying try to get below (default: 300ms)', duration)
    .option('--max-rounds <n>', 'rounds of copying while it runs, at most (default: 30)', count)
    .addOption(
      new Option('--on-stall <how>', 'when rounds do not get there (default: throttle)').choices([
        'throttle',
        'post-copy',
        'stop',
      ]),
    )
    .option('--rate-limit <rate>', 'of the link that its memory may take, like 50MB/s', rate)
    .addOption(
      new Option('--engine <name>', 'the engine that shall have it there, when it is another one').choices(
        hostEngineSchema.options,
      ),
    );
}

function request(service: string, flags: ServiceOptions & { to: string }) {
  const parsed = migrateOptionsSchema.safeParse({
    keepSourceStopped: flags.keepSourceStopped,
    bindMounts: flags.bindMounts,
    sharedVolumes: flags.sharedVolume ?? [],
    technique: flags.technique,
    approach: flags.approach,
    ...(flags.maxDowntime === undefined ? {} : { maxDowntime_ms: flags.maxDowntime }),
    ...(flags.maxRounds === undefined ? {} : { maxRounds: flags.maxRounds }),
    ...(flags.onStall === undefined ? {} : { onStall: flags.onStall }),
    ...(flags.rateLimit === undefined ? {} : { rateLimit_bytes_s: flags.rateLimit }),
    ...(flags.engine === undefined ? {} : { engine: flags.engine }),
    ...(flags.timeout === undefined ? {} : { timeout_ms: flags.timeout }),
    ...(flags.healthTimeout === undefined ? {} : { healthTimeout_ms: flags.healthTimeout }),
  });
  if (!parsed.success) {
    throw usage(
      'A limit is out of range: --timeout from 1s to 24h, --health-timeout at most 10m, --max-downtime at most 1h, --max-rounds at most 100.',
    );
  }
  return { service, to: flags.to, options: parsed.data };
}

const EXIT_REFUSED = 4;

export function addCheck(program: Command, runner: Runner): void {
  const check = withServiceOptions(program.command('check'))
    .description('Say whether a service can be moved, and what stands in the way; nothing is touched')
    .addHelpText(
      'after',
      '\nExample:\n  ums check redis --to beta\n\nExit status 4 when it cannot be moved as it is.\n',
    );
  runner.action(check, (cli, service: string, flags: Omit<MigrateFlags, 'keepSourceStopped'>) =>
    cli.withAgent(async (client) => {
      const result = await ask(client, service, { ...flags, keepSourceStopped: false });
      cli.show(result, () => renderCheck(cli, result));
      return result.feasible ? 0 : EXIT_REFUSED;
    }),
  );
}

function ask(client: AgentClient, service: string, flags: ServiceOptions & { to: string }) {
  return withSuggestions(client, { service, system: flags.to }, () => client.check(request(service, flags)));
}

export function renderCheck(cli: Cli, result: CheckResult): string {
  const { style } = cli;
  const marks = { error: style.red('✗'), warning: style.yellow('!'), info: style.dim('i') };
  const width = Math.min(cli.io.columns(), 100) - 6;
  const findings = [...result.findings]
    .sort((a, b) => rank(a.severity) - rank(b.severity))
    .flatMap((finding) => {
      const texts = [finding.what, finding.why, finding.mend === '' ? '' : `To do: ${finding.mend}`].filter(
        (text) => text !== '',
      );
      const lines = texts.flatMap((text) => wrap(text, width));
      return lines
        .map((line, at) => (at === 0 ? `  ${marks[finding.severity]} ${line}` : `      ${line}`))
        .concat(`      ${style.dim(`[${finding.id}]`)}`);
    });
  const verdict = result.feasible
    ? `${style.green('✔')} ${result.service} can move from ${result.source} to ${result.destination}`
    : `${style.red('✗')} ${result.service} cannot move from ${result.source} to ${result.destination} as it is`;
  const sizes = `${formatBytes(result.state_bytes)} of memory, ${formatBytes(result.file_bytes)} of files`;
  const why = wrap(result.why, width).map((line) => `  ${line}`);
  const table = result.techniques.length === 0 ? [] : ['', renderTechniques(result, width)];
  return [
    `${verdict}.`,
    `  ${result.technique ?? 'technique chosen later'}, ${result.approach}; ${sizes}`,
    ...why,
    ...table,
    ...findings,
    '',
  ].join('\n');
}

function predicted(value: number | null): string {
  return value === null ? '-' : `~${formatDuration(value)}`;
}

/** What each technique would take, the one that would be used marked. */
function renderTechniques(result: CheckResult, width: number): string {
  const table = formatTable<TechniqueRow>(
    [
      { title: 'technique', value: (row) => `${row.technique === result.technique ? '▸' : ' '} ${row.technique}` },
      { title: 'downtime', value: (row) => predicted(row.downtime_ms), align: 'right' },
      { title: 'total', value: (row) => predicted(row.total_ms), align: 'right' },
      { title: 'on the wire', value: (row) => (row.bytes === null ? '-' : formatBytes(row.bytes)), align: 'right' },
      { title: 'slow after', value: (row) => predicted(row.degraded_ms), align: 'right' },
      { title: '', value: (row) => (row.feasible ? '' : row.note), least: 10 },
    ],
    result.techniques,
    width,
  );
  return table.replaceAll(/^/gm, '  ').trimEnd();
}

function rank(severity: 'error' | 'warning' | 'info'): number {
  return { error: 0, warning: 1, info: 2 }[severity];
}

export function addMigrate(program: Command, runner: Runner): void {
  const migrate = withServiceOptions(program.command('migrate'))
    .description('Move a running service, with its memory, to another system')
    .option('--dry-run', 'check only, touch nothing', false)
    .option('--keep-source-stopped', "keep this system's copy, stopped, instead of deleting it", false)
    .option('--timeout <duration>', 'undo when it has not been handed over by then (default: 1h)', duration)
    .option(
      '--health-timeout <duration>',
      'how long it may take to be healthy there before the move is undone (default: 10s)',
      duration,
    )
    .option('--detach', 'start it, print its id and return', false)
    .addHelpText('after', MIGRATE_HELP);
  runner.action(migrate, (cli, service: string, flags: MigrateFlags) =>
    reportingRefusal(cli, service, flags.to, () =>
      cli.withAgent(async (client) => {
        if (flags.dryRun) return dryRun(cli, client, service, flags);
        const started = await withSuggestions(client, { service, system: flags.to }, () =>
          client.migrate(request(service, flags)),
        );
        if (!flags.detach) return follow(cli, client, started);
        cli.show(resultEvent(started), () =>
          cli.quiet ? started.id : `${started.id} has begun. To look: ums show ${started.id} --follow`,
        );
        return 0;
      }),
    ),
  );
}

const MIGRATE_HELP = `
Examples:
  ums migrate redis --to beta
  ums migrate redis --to beta --technique hybrid --max-downtime 200ms
  ums migrate redis --to beta --dry-run
  ums migrate redis --to beta --json | jq -c 'select(.event == "result")'

Ctrl-C asks the agents to cancel; until the hand-over the service then stays where
it is. Ctrl-C again stops watching only. With --json each line is one event and the
last is {"event":"result","status":"done"|"aborted"|"in_doubt"|"running"|"refused",…}.
`;

async function dryRun(cli: Cli, client: AgentClient, service: string, flags: MigrateFlags): Promise<number> {
  const result = await ask(client, service, flags);
  cli.show(
    { event: 'result', status: 'dry_run', ...result },
    () => `${renderCheck(cli, result)}Dry run: nothing was touched.\n`,
  );
  return result.feasible ? 0 : EXIT_REFUSED;
}

/** With --json the last line is always a result, also when there never was a migration. */
async function reportingRefusal(cli: Cli, service: string, to: string, act: () => Promise<number>): Promise<number> {
  try {
    return await act();
  } catch (thrown) {
    const error: UmsError = toUmsError(thrown);
    cli.emit(refusedEvent(error, service, to));
    if (cli.json) return error.exitStatus;
    throw error;
  }
}
