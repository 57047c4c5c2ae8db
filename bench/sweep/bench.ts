import { z } from 'zod';
import type { Lab } from '#lab/lab.ts';
import { formatBytes, formatDuration, formatTable } from '#src/cli/format.ts';
import { attempt, freshMove, type Outcome, TECHNIQUES } from '../cases.ts';
import { someOf, whole, wholeList } from '../flags.ts';
import { median } from '../measure/statistics.ts';
import { ENGINES } from '../pulse/service.ts';
import type { Bench, BenchOptions, BenchResult } from '../registry.ts';
import { atMost, type Reporter } from '../report.ts';
import { onStage, type StagedLink, stageLink } from '../stage.ts';
import {
  cellsOf,
  DEFAULT_GRID,
  keyOf,
  leastSeconds,
  LINK_NAMES,
  LINKS,
  type LinkName,
  type SweepCell,
} from './plan.ts';
import { csvOf, type SweepResult, sweepPlots } from './table.ts';

const flagsSchema = z.object({
  engine: z.array(z.enum(ENGINES)).min(1),
  links: z.array(z.enum(LINK_NAMES)),
  sizes: z.array(z.int()),
  dirty: z.array(z.int()),
  techniques: z.array(z.enum(TECHNIQUES)),
  compressible: z.boolean(),
  limit: z.int(),
  fresh: z.boolean(),
});

const resultSchema = z.object({
  engine: z.enum(ENGINES),
  link: z.enum(LINK_NAMES),
  mib: z.int(),
  dirty_percent: z.int(),
  dirty_kb_s: z.int(),
  technique: z.enum(TECHNIQUES),
  compressible: z.boolean(),
  repetition: z.int(),
  at: z.number(),
  downtime_ms: z.number(),
  total_ms: z.number(),
  bytes_on_wire: z.number(),
  rounds: z.int(),
  stalls: z.int(),
  longest_stall_ms: z.number(),
  late_share: z.number(),
  full_speed_ms: z.number().nullable(),
  watched_ms: z.number(),
  continuous: z.boolean(),
  memory_ok: z.boolean(),
});

/** Besides the memory's way: starting the workload, waiting, checking its memory. A guess for the forecast only. */
const EXTRA_S = 12;

export const sweep: Bench = {
  name: 'sweep',
  what: 'memory × dirtying × link × technique; goes on where an earlier run ended',
  repeat: 1,
  examples: [
    'sweep --links lan --sizes 8,128 --dirty 0,50 --techniques cold,hybrid',
    'sweep --links management,lan --repeat 3',
    'sweep --limit 3600',
  ],
  options: (command) =>
    void command
      .option('--engine <name>', ENGINES.join(' or '), someOf(ENGINES), ['runc'])
      .option('--links <names>', LINK_NAMES.join(', '), someOf(LINK_NAMES), [...DEFAULT_GRID.links])
      .option('--sizes <mib,…>', 'MiB of memory', wholeList(1, 65_536), [...DEFAULT_GRID.sizes])
      .option('--dirty <percent,…>', "written, percent of the link's rate", wholeList(0, 1000), [...DEFAULT_GRID.dirty])
      .option('--techniques <names>', TECHNIQUES.join(', '), someOf(TECHNIQUES), [...DEFAULT_GRID.techniques])
      .option('--compressible', 'memory that shrinks to about an eighth', false)
      .option(
        '--limit <s>',
        'leave out what needs longer for its memory alone',
        whole(1, 100_000),
        DEFAULT_GRID.limit_s,
      )
      .option('--fresh', 'measure anew what an earlier run has measured', false),
  run: (report, options) => onStage(report, options, (lab) => measure(report, options, lab)),
};

async function measure(report: Reporter, options: BenchOptions, lab: Lab): Promise<BenchResult> {
  const flags = flagsSchema.parse(options.flags);
  const [engine = 'runc'] = flags.engine;
  const { cells, left_out } = cellsOf({ ...flags, engine, repeat: options.repeat, limit_s: flags.limit });
  for (const { link, mib, seconds } of left_out) {
    report.say(`Left out: ${mib} MiB over ${link}, which takes ${formatDuration(seconds * 1000)} at least (--limit).`);
  }
  const results: SweepResult[] = [];
  const missing: SweepCell[] = [];
  for (const cell of cells) {
    const kept = flags.fresh ? undefined : resultSchema.safeParse(await options.results.readLasting(keyOf(cell))).data;
    if (kept === undefined) missing.push(cell);
    else results.push(kept);
  }
  const expected_s = missing.reduce((sum, cell) => sum + leastSeconds(cell) * 1.3 + EXTRA_S, 0);
  report.say(
    `${cells.length} runs, of which ${results.length} are kept from earlier; the others take about ${formatDuration(expected_s * 1000)}.`,
  );
  const { links, failures } = await measureMissing(report, options, lab, missing, results);
  report.say(`\n${tableOf(results)}`);
  report.say(`Table: ${await options.results.beside('csv', csvOf(results))}`);
  for (const [ending, drawn] of Object.entries(sweepPlots(results))) {
    report.say(`Plot: ${await options.results.beside(ending, drawn)}`);
  }
  return {
    checks: [
      atMost('moves that failed', failures.length, 0),
      atMost('restarts or second copies of the workload', results.filter((one) => !one.continuous).length, 0),
      atMost('changed memory', results.filter((one) => !one.memory_ok).length, 0),
    ],
    figures: { links, left_out, results, failures },
  };
}

async function measureMissing(
  report: Reporter,
  options: BenchOptions,
  lab: Lab,
  missing: readonly SweepCell[],
  results: SweepResult[],
): Promise<{ links: StagedLink[]; failures: string[] }> {
  const links: StagedLink[] = [];
  const failures: string[] = [];
  let set: LinkName | undefined;
  for (const [at, cell] of missing.entries()) {
    if (set !== cell.link) {
      const { rate, delay_ms } = LINKS[cell.link];
      links.push(await stageLink(report, lab, cell.link, rate, delay_ms));
      set = cell.link;
    }
    const name = `${cell.link} ${cell.mib} MiB ${cell.dirty_percent} % ${cell.technique} #${cell.repetition}`;
    const place = `[${at + 1}/${missing.length}]`;
    const { engine, mib, dirty_kb_s, technique, compressible } = cell;
    const one = { engine, mib, dirty_kb_s, technique, compressible };
    const outcome = await attempt(() => freshMove(lab, one, { signal: options.signal }), options.signal);
    if ('error' in outcome) {
      failures.push(`${name}: ${outcome.error}`);
      report.event('failure', { name, error: outcome.error });
      report.say(`${place} ${report.style.red('failed')} ${name}: ${outcome.error}`);
      continue;
    }
    const result = resultOf(cell, outcome);
    results.push(result);
    await options.results.lasting(keyOf(cell), result);
    report.event('repetition', { name, result });
    report.say(
      `${place} ${name}: down ${formatDuration(result.downtime_ms)}, total ${formatDuration(result.total_ms)}`,
    );
  }
  return { links, failures };
}

function resultOf(cell: SweepCell, outcome: Outcome): SweepResult {
  const { downtime_ms, total_ms, bytes_on_wire, rounds, stalls, after, continuous, memory_ok } = outcome;
  return {
    ...cell,
    at: Date.now(),
    downtime_ms,
    total_ms,
    bytes_on_wire,
    rounds: rounds.length,
    stalls,
    longest_stall_ms: after.longest_stall_ms,
    late_share: after.late_share,
    full_speed_ms: after.full_speed_ms,
    watched_ms: after.seconds * 1000,
    continuous,
    memory_ok,
  };
}

function medianOf(own: readonly SweepResult[], value: (one: SweepResult) => number): number {
  return median(own.map(value));
}

function tableOf(results: readonly SweepResult[]): string {
  const groups = new Map<string, SweepResult[]>();
  for (const one of results) {
    const key = keyOf({ ...one, repetition: 0 });
    groups.set(key, [...(groups.get(key) ?? []), one]);
  }
  return formatTable(
    [
      { title: 'link', value: ([first]) => first?.link ?? '' },
      { title: 'MiB', value: ([first]) => String(first?.mib), align: 'right' },
      { title: 'written', value: ([first]) => `${first?.dirty_percent} %`, align: 'right' },
      { title: 'technique', value: ([first]) => first?.technique ?? '' },
      { title: 'down', value: (own) => formatDuration(medianOf(own, (one) => one.downtime_ms)), align: 'right' },
      { title: 'total', value: (own) => formatDuration(medianOf(own, (one) => one.total_ms)), align: 'right' },
      { title: 'wire', value: (own) => formatBytes(medianOf(own, (one) => one.bytes_on_wire)), align: 'right' },
      {
        title: 'degraded',
        value: (own) => formatDuration(medianOf(own, (one) => one.full_speed_ms ?? one.watched_ms)),
        align: 'right',
      },
    ],
    [...groups.values()],
    100,
  );
}
