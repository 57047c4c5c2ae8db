import { z } from 'zod';
import type { Lab } from '#lab/lab.ts';
import { formatDuration, formatTable, wrap } from '#src/cli/format.ts';
import { moveByRunc, RUNC_TECHNIQUES } from '../baselines/runc-rsync.ts';
import { attempt, freshMove, type Outcome, type Technique, TECHNIQUES } from '../cases.ts';
import { someOf, whole } from '../flags.ts';
import { ci95, mean, median } from '../measure/statistics.ts';
import { ENGINES } from '../pulse/service.ts';
import type { Bench, BenchOptions, BenchResult } from '../registry.ts';
import { atMost, below, type BenchCheck, type Reporter } from '../report.ts';
import { onStage, type StagedLink, stageLink } from '../stage.ts';
import { findingsOf, findingsText } from './findings.ts';
import { type FogRun, METRICS, metricsOfBaseline, metricsOfUms } from './metrics.ts';
import { type Configuration, CONFIGURATIONS, type ConfigurationName, type Paper, readPaper } from './paper.ts';
import { fogPlots, kinds, of } from './plots.ts';

const flagsSchema = z.object({
  configurations: z.array(z.enum(CONFIGURATIONS)),
  techniques: z.array(z.enum(TECHNIQUES)),
  engine: z.array(z.enum(ENGINES)),
  baselines: z.boolean(),
  baselineRepeat: z.int(),
});

export const fog: Bench = {
  name: 'fog',
  what: 'the configurations A to D of "Container Migration in the Fog", its nine metrics, and which of its findings hold',
  repeat: 5,
  examples: [
    'fog --configurations B --repeat 1',
    'fog --configurations C,D --techniques cold,hybrid --no-baselines',
    'fog',
  ],
  options: (command) =>
    void command
      .option('--configurations <names>', CONFIGURATIONS.join(', '), someOf(CONFIGURATIONS), [...CONFIGURATIONS])
      .option('--techniques <names>', TECHNIQUES.join(', '), someOf(TECHNIQUES), [...TECHNIQUES])
      .option('--engine <name>', ENGINES.join(' or '), someOf(ENGINES), ['runc'])
      .option('--baseline-repeat <n>', 'repetitions of runc + rsync, whose post-copy takes long', whole(1, 1000), 1)
      .option('--no-baselines', "leave out the paper's own way, runc + rsync"),
  run: (report, options) => onStage(report, options, (lab) => measure(report, options, lab)),
};

async function measure(report: Reporter, options: BenchOptions, lab: Lab): Promise<BenchResult> {
  const flags = flagsSchema.parse(options.flags);
  const paper = readPaper();
  const runs: FogRun[] = [];
  const failures: string[] = [];
  const links: StagedLink[] = [];
  for (const line of wrap(`As in ${paper.source}; there: ${paper.machine}.`, 78)) report.say(line);
  const chosen = paper.configurations.filter((each) => flags.configurations.includes(each.name));
  for (const configuration of chosen) {
    const { name, link, rate, delay_ms, dirty_kb_s } = configuration;
    links.push(await stageLink(report, lab, `${name} (${link}, ${dirty_kb_s} KB/s written)`, rate, delay_ms));
    for (let repetition = 1; repetition <= options.repeat; repetition += 1) {
      for (const act of actsOf(lab, paper, configuration, flags, repetition, options.signal)) {
        const run = await attempt(act.run, options.signal);
        if ('error' in run) {
          failures.push(`${act.name}: ${run.error}`);
          report.say(`  ${report.style.red('failed')} ${act.name}: ${run.error}`);
          report.event('failure', { name: act.name, error: run.error });
          continue;
        }
        runs.push(run);
        await options.results.repetition(act.file, run);
        report.event('repetition', { name: act.name, result: run });
        report.say(
          `  ${act.name}: down ${formatDuration(run.downtime_ms)}, total ${formatDuration(run.total_ms)}, ${(run.bytes / 1e6).toFixed(1)} MB`,
        );
      }
    }
  }
  return conclude(report, options, paper, runs, failures, links);
}

interface Act {
  name: string;
  file: string;
  run: () => Promise<FogRun>;
}

function actsOf(
  lab: Lab,
  paper: Paper,
  configuration: Configuration,
  flags: z.infer<typeof flagsSchema>,
  repetition: number,
  signal: AbortSignal,
): Act[] {
  const settings = { mib: paper.state_mib, dirty_kb_s: configuration.dirty_kb_s };
  const [engine = 'runc'] = flags.engine;
  const watch = { signal, client_every_us: paper.request_interval_s * 1e6 };
  const common = { configuration: configuration.name, repetition };
  const byUms = flags.techniques.map(
    (technique): Act => ({
      name: `${configuration.name} ums ${technique} #${repetition}`,
      file: `${configuration.name}-ums-${technique}-${repetition}`,
      run: async () => ({ ...common, ...ofUms(await freshMove(lab, { engine, technique, ...settings }, watch)) }),
    }),
  );
  const wanted = flags.baselines && repetition <= flags.baselineRepeat;
  const ownWay = RUNC_TECHNIQUES.filter((technique) => wanted && flags.techniques.includes(technique));
  const byRunc = ownWay.map(
    (technique): Act => ({
      name: `${configuration.name} runc + rsync ${technique} #${repetition}`,
      file: `${configuration.name}-runc-rsync-${technique}-${repetition}`,
      run: async () => {
        const outcome = await moveByRunc(lab, technique, settings, signal);
        const { downtime_ms, total_ms, bytes, continuous, memory_ok } = outcome;
        const metrics = metricsOfBaseline(outcome, technique);
        const seen = { downtime_ms, total_ms, bytes, continuous, memory_ok, degraded_ms: null };
        return { ...common, by: 'runc + rsync', technique, metrics, ...seen, outcome };
      },
    }),
  );
  return [...byUms, ...byRunc];
}

function ofUms(outcome: Outcome): Omit<FogRun, 'configuration' | 'repetition'> {
  const { technique, downtime_ms, total_ms, continuous, memory_ok } = outcome;
  return {
    by: 'ums',
    technique,
    metrics: metricsOfUms(outcome),
    downtime_ms,
    total_ms,
    bytes: outcome.bytes_on_wire,
    degraded_ms: outcome.after.full_speed_ms,
    continuous,
    memory_ok,
    outcome,
  };
}

async function conclude(
  report: Reporter,
  options: BenchOptions,
  paper: Paper,
  runs: readonly FogRun[],
  failures: readonly string[],
  links: readonly StagedLink[],
): Promise<BenchResult> {
  report.say(`\n${table(runs)}`);
  const own = runs.filter((run) => run.by === 'ums');
  const findings = findingsOf(own);
  const text = findingsText(findings, 'ums', paper.source);
  for (const line of text.split('\n')) report.say(wrap(line, 100).join('\n    '));
  await options.results.beside('findings.md', text);
  const subtitle = `${paper.state_mib} MiB; medians (stacks: means) of ${options.repeat} with least and most; A, B: 11.34 Mbit/s, 123 ms; C, D: 72.41 Mbit/s, 7 ms; A, C: 10 KB/s written, B, D: 500`;
  for (const [ending, drawn] of Object.entries(fogPlots(runs, subtitle))) {
    report.say(`Plot: ${await options.results.beside(ending, drawn)}`);
  }
  return { checks: judge(runs, failures), figures: { paper, links, runs, failures, findings } };
}

export function judge(runs: readonly FogRun[], failures: readonly string[]): BenchCheck[] {
  const value = (name: ConfigurationName, technique: Technique, figure: 'downtime_ms' | 'total_ms') => {
    const own = of(runs, name, 'ums', technique);
    return own.length === 0 ? undefined : median(own.map((run) => run[figure]));
  };
  const checks: BenchCheck[] = [];
  const hybridDowntime = value('B', 'hybrid', 'downtime_ms');
  if (hybridDowntime !== undefined) checks.push(atMost('B: downtime of hybrid, s', hybridDowntime / 1000, 0.5));
  const [hybrid, preCopy] = [value('B', 'hybrid', 'total_ms'), value('B', 'pre-copy', 'total_ms')];
  if (hybrid !== undefined && preCopy !== undefined) {
    checks.push(below('B: total of hybrid, s (limit: pre-copy)', hybrid / 1000, preCopy / 1000));
  }
  for (const name of ['A', 'B'] as const) {
    const [lazy, cold] = [value(name, 'post-copy', 'total_ms'), value(name, 'cold', 'total_ms')];
    if (lazy !== undefined && cold !== undefined) {
      checks.push(atMost(`${name}: total of post-copy / of cold, at 123 ms there and back`, lazy / cold, 1.2));
    }
  }
  return [
    ...checks,
    atMost('moves that failed', failures.length, 0),
    atMost('restarts or second copies of the workload', runs.filter((run) => !run.continuous).length, 0),
    atMost('changed memory', runs.filter((run) => !run.memory_ok).length, 0),
  ];
}

function cell(values: readonly number[], unit: number): string {
  const [middle, half] = [mean(values) / unit, ci95(values) / unit];
  return middle === 0 ? '–' : `${middle.toFixed(2)} ±${half.toFixed(2)}`;
}

/** Means with their 95 % confidence, as the paper gives them. */
function table(runs: readonly FogRun[]): string {
  const rows = CONFIGURATIONS.flatMap((name) =>
    kinds(runs).flatMap(({ by, technique }) => {
      const own = of(runs, name, by, technique);
      return own.length === 0 ? [] : [{ name, by, technique, own }];
    }),
  );
  return formatTable(
    [
      { title: '', value: (row) => row.name },
      { title: 'by', value: (row) => row.by },
      { title: 'technique', value: (row) => row.technique },
      {
        title: 'total s',
        value: (row) =>
          cell(
            row.own.map((run) => run.total_ms),
            1000,
          ),
        align: 'right' as const,
      },
      {
        title: 'down s',
        value: (row) =>
          cell(
            row.own.map((run) => run.downtime_ms),
            1000,
          ),
        align: 'right' as const,
      },
      ...METRICS.map((metric) => ({
        title: `${metric.name} ${metric.unit}`,
        value: (row: (typeof rows)[number]) =>
          cell(
            row.own.map((run) => run.metrics[metric.key]),
            metric.unit === 's' ? 1000 : 1e6,
          ),
        align: 'right' as const,
      })),
    ],
    rows,
    220,
  );
}
