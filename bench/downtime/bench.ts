import type { Lab } from '#lab/lab.ts';
import { formatBytes, formatDuration, formatTable } from '#src/cli/format.ts';
import { z } from 'zod';
import { type Floor, measureFloor } from '../baselines/floor.ts';
import type { BaselineOutcome } from '../baselines/model.ts';
import { moveByPodman } from '../baselines/podman.ts';
import { moveByRunc, RUNC_TECHNIQUES } from '../baselines/runc-rsync.ts';
import { attempt, freshMove, oneMove, TECHNIQUES, type Watch } from '../cases.ts';
import { rate, someOf, wholeList } from '../flags.ts';
import { median, summarise } from '../measure/statistics.ts';
import { ENGINES } from '../pulse/service.ts';
import type { Bench, BenchOptions, BenchResult } from '../registry.ts';
import type { Reporter } from '../report.ts';
import { onStage, stageLink } from '../stage.ts';
import { degradedOf, groupsOf, judge, type Moved } from './judge.ts';
import { plotsOf } from './plots.ts';
import { type Cell, DEFAULTS, planned, referenceOf } from './plan.ts';

const SLOW = { rate: '72.41mbit', delay_ms: 3.47 };
const QUICK = { engines: ['runc'], sizes: [128], dirty: [10_000], baselines: false, slow: false };
const CLIENT_EVERY_US = 1000;
const WORKLOAD =
  'pulse: incompressible memory, whole pages rewritten at random, one tick a millisecond by the clock; its own log is the measure, and where its engine connects it, a client outside asks it a thousand times a second through a Frontman. Under runc it has the namespaces of `runc spec`, as the local floor has';

const flagsSchema = z.object({
  engines: z.array(z.enum(ENGINES)),
  sizes: z.array(z.int()),
  dirty: z.array(z.int()),
  techniques: z.array(z.enum(TECHNIQUES)),
  rate: z.string(),
  all: z.boolean(),
  slow: z.boolean(),
  baselines: z.boolean(),
  client: z.boolean(),
  quick: z.boolean(),
});
type Flags = z.infer<typeof flagsSchema>;

export const downtime: Bench = {
  name: 'downtime',
  what: 'how long a service is away, by technique, size and dirtying, beside the local floor, Podman and runc + rsync',
  repeat: 5,
  examples: [
    'downtime --quick --repeat 1',
    'downtime --engines runc --sizes 1024 --dirty 0,10000,50000 --techniques hybrid,post-copy',
    'downtime',
  ],
  options: (command) =>
    void command
      .option('--engines <names>', ENGINES.join(', '), someOf(ENGINES), [...DEFAULTS.engines])
      .option('--sizes <mib,…>', 'MiB of memory', wholeList(1, 65_536), [...DEFAULTS.sizes])
      .option('--dirty <kb/s,…>', 'KB/s that it rewrites', wholeList(0, 10_000_000), [...DEFAULTS.dirty])
      .option('--techniques <names>', TECHNIQUES.join(', '), someOf(TECHNIQUES), [...DEFAULTS.techniques])
      .option('--rate <rate>', 'rate of the link', rate, '1gbit')
      .option('--all', 'every combination, not only those that a figure needs', false)
      .option('--no-slow', `leave out the moves over ${SLOW.rate}`)
      .option('--no-baselines', 'leave out Podman and runc + rsync')
      .option('--no-client', 'no client outside; under runc there is none')
      .option('--quick', 'runc, 128 MiB, 10 MB/s, no baselines but the local floor', false),
  run: (report, options) => onStage(report, options, (lab) => measure(report, options, lab)),
};

interface Timed {
  downtime_ms: number;
  total_ms: number;
}

class Run {
  readonly report: Reporter;
  readonly options: BenchOptions;
  readonly lab: Lab;
  readonly flags: Flags;
  readonly moves: Moved[] = [];
  readonly floors: Floor[] = [];
  readonly podman: BaselineOutcome[] = [];
  readonly runc: BaselineOutcome[] = [];
  readonly failures: string[] = [];
  #done = 0;
  #all = 0;

  constructor(report: Reporter, options: BenchOptions, lab: Lab) {
    this.report = report;
    this.options = options;
    this.lab = lab;
    const flags = flagsSchema.parse(options.flags);
    this.flags = flags.quick ? flagsSchema.parse({ ...flags, ...QUICK }) : flags;
  }

  /**
   * Repetitions are interleaved, so that what else the machine does falls on all of them alike; the floor, which is
   * what they are compared with, is measured before each.
   */
  async onFastLink(cells: readonly Cell[]): Promise<void> {
    const baselines = this.flags.baselines ? 1 + RUNC_TECHNIQUES.length : 0;
    const moves = 2 * cells.length + cells.filter((cell) => cell.back).length;
    this.#start(this.options.repeat * (moves + baselines));
    for (let repetition = 1; repetition <= this.options.repeat; repetition += 1) {
      for (const [at, cell] of cells.entries()) {
        await this.#floor(`${repetition}-${at + 1}`);
        await this.#cell(cell, repetition);
      }
      if (this.flags.baselines) await this.#baselines(repetition);
    }
  }

  async onSlowLink(cells: readonly Cell[]): Promise<void> {
    this.#start(this.options.repeat * cells.length);
    for (let repetition = 1; repetition <= this.options.repeat; repetition += 1) {
      for (const cell of cells) await this.#cell(cell, repetition);
    }
  }

  #start(all: number): void {
    this.#done = 0;
    this.#all = all;
  }

  async #floor(place: string): Promise<void> {
    const act = () => measureFloor(this.lab.host('alpha'), this.options.signal);
    const floor = await this.#keep(`floor-${place}`, 'local floor (runc, 8 MiB)', act);
    if (floor !== undefined) this.floors.push(floor);
  }

  async #baselines(repetition: number): Promise<void> {
    const { signal } = this.options;
    const settings = { mib: referenceOf(this.flags.sizes), dirty_kb_s: 0 };
    const podman = () => moveByPodman(this.lab, settings, signal);
    const exported = await this.#keep(`podman-${settings.mib}-${repetition}`, `podman ${settings.mib} MiB`, podman);
    if (exported !== undefined) this.podman.push(exported);
    for (const technique of RUNC_TECHNIQUES) {
      const name = `runc + rsync ${technique} ${settings.mib} MiB`;
      const runc = () => moveByRunc(this.lab, technique, settings, signal);
      const copied = await this.#keep(`runc-rsync-${technique}-${settings.mib}-${repetition}`, name, runc);
      if (copied !== undefined) this.runc.push(copied);
    }
  }

  async #cell(cell: Cell, repetition: number): Promise<void> {
    const { signal } = this.options;
    const { engine, technique, mib, dirty_kb_s } = cell;
    // A container of plain runc has a network namespace that nobody connects, so nobody outside can ask it.
    const asked = this.flags.client && engine !== 'runc';
    const watch: Watch = { signal, client_every_us: asked ? CLIENT_EVERY_US : undefined };
    const one = { engine, technique, mib, dirty_kb_s };
    const name = `${engine} ${technique} ${mib} MiB ${dirty_kb_s / 1000} MB/s${cell.link === 'slow' ? ', slow link' : ''}`;
    const file = `${cell.link}-${engine}-${technique}-${mib}-${dirty_kb_s}`;
    const moved = await this.#keep(`${file}-${repetition}`, name, () => freshMove(this.lab, one, watch));
    if (moved === undefined) return;
    this.moves.push({ cell, way: 'there', repetition, outcome: moved });
    if (!cell.back) return;
    const back = () => oneMove(this.lab, one, 'beta', 'alpha', watch);
    const returned = await this.#keep(`${file}-back-${repetition}`, `${name}, back`, back);
    if (returned !== undefined) this.moves.push({ cell, way: 'back', repetition, outcome: returned });
  }

  /** Measures one repetition, keeps it at once and says what came out; one that fails is told, and the run goes on. */
  async #keep<Kept extends Timed>(file: string, name: string, act: () => Promise<Kept>): Promise<Kept | undefined> {
    this.#done += 1;
    const { report, options } = this;
    const place = `[${this.#done}/${this.#all}]`;
    const one = await attempt(act, options.signal);
    if ('error' in one) {
      this.failures.push(`${name}: ${one.error}`);
      report.event('failure', { name, error: one.error });
      report.say(`${place} ${report.style.red('failed')} ${name}: ${one.error}`);
      return undefined;
    }
    await options.results.repetition(file, one);
    report.event('repetition', { name, result: one });
    report.say(`${place} ${name}: down ${formatDuration(one.downtime_ms)}, total ${formatDuration(one.total_ms)}`);
    return one;
  }
}

async function measure(report: Reporter, options: BenchOptions, lab: Lab): Promise<BenchResult> {
  const run = new Run(report, options, lab);
  const { flags } = run;
  const cells = planned(flags);
  const fast = await stageLink(report, lab, 'fast', flags.rate, 0);
  report.say(`Workload: ${WORKLOAD}.\n`);
  await run.onFastLink(cells.filter((cell) => cell.link === 'fast'));
  const slowCells = cells.filter((cell) => cell.link === 'slow');
  const slow = slowCells.length === 0 ? undefined : await stageLink(report, lab, 'slow', SLOW.rate, SLOW.delay_ms);
  if (slow !== undefined) await run.onSlowLink(slowCells);
  const { moves, floors, podman, runc, failures } = run;
  report.say(`\n${table(moves)}`);
  report.say(baselineTable(floors, [...podman, ...runc]));
  for (const [ending, drawn] of Object.entries(plotsOf(moves, floors, referenceOf(flags.sizes)))) {
    report.say(`Plot: ${await options.results.beside(ending, drawn)}`);
  }
  // What the links carry, by iperf3 in this run: of what a link is shaped to, headers take their part.
  const link_bps = { fast: fast.measured.rate_bps, slow: slow?.measured.rate_bps ?? null };
  return {
    checks: judge({ moves, floors, podman, failures, link_bps }, referenceOf(flags.sizes)),
    figures: { links: { fast, slow }, workload: WORKLOAD, moves, floors, podman, runc, failures },
  };
}

const spread = (values: readonly number[]) =>
  `${formatDuration(Math.min(...values))} – ${formatDuration(Math.max(...values))}`;

export function table(moves: readonly Moved[]): string {
  return formatTable(
    [
      { title: 'engine', value: ({ cell }) => cell.engine },
      { title: 'technique', value: ({ cell }) => `${cell.technique}${cell.link === 'slow' ? ' (slow)' : ''}` },
      { title: 'MiB', value: ({ cell }) => String(cell.mib), align: 'right' },
      { title: 'MB/s', value: ({ cell }) => String(cell.dirty_kb_s / 1000), align: 'right' },
      { title: 'down', value: ({ outcomes }) => medianOf(outcomes, (one) => one.downtime_ms), align: 'right' },
      { title: 'spread', value: ({ outcomes }) => spread(outcomes.map((one) => one.downtime_ms)) },
      {
        title: 'client',
        value: ({ outcomes }) =>
          outcomes[0]?.client === null ? '–' : medianOf(outcomes, (one) => one.client?.downtime_ms ?? 0),
        align: 'right',
      },
      { title: 'total', value: ({ outcomes }) => medianOf(outcomes, (one) => one.total_ms), align: 'right' },
      {
        title: 'wire',
        value: ({ outcomes }) => formatBytes(median(outcomes.map((one) => one.bytes_on_wire))),
        align: 'right',
      },
      {
        title: 'stall',
        value: ({ outcomes }) => medianOf(outcomes, (one) => one.after.longest_stall_ms),
        align: 'right',
      },
      { title: 'degraded', value: ({ outcomes }) => formatDuration(degradedOf(outcomes)), align: 'right' },
    ],
    groupsOf(moves),
    120,
  );
}

function medianOf<One>(outcomes: readonly One[], value: (one: One) => number): string {
  return formatDuration(median(outcomes.map(value)));
}

function baselineTable(floors: readonly Floor[], others: readonly BaselineOutcome[]): string {
  const names = [...new Set(others.map((one) => `${one.how}, ${one.mib} MiB`))];
  const rows = [
    ...(floors.length === 0 ? [] : [{ name: 'local floor: runc checkpoint + restore, 8 MiB', own: floors.slice() }]),
    ...names.map((name) => ({ name, own: others.filter((one) => `${one.how}, ${one.mib} MiB` === name) })),
  ];
  return formatTable(
    [
      { title: 'without ums', value: (row) => row.name },
      {
        title: 'down',
        value: (row) => formatDuration(summarise(row.own.map((one) => one.downtime_ms)).median),
        align: 'right',
      },
      { title: 'spread', value: (row) => spread(row.own.map((one) => one.downtime_ms)) },
      { title: 'total', value: (row) => medianOf<Floor>(row.own, (one) => one.total_ms), align: 'right' },
    ],
    rows,
    120,
  );
}
