import { z } from 'zod';
import type { Host } from '#lab/host.ts';
import { formatRate } from '#lab/links.ts';
import { Lab } from '#lab/lab.ts';
import { formatBytes, formatDuration, formatTable, wrap } from '#src/cli/format.ts';
import { wholeList } from './flags.ts';
import { fetchFile, serveFiles } from './measure/copy.ts';
import type { TickLog } from './measure/ticks.ts';
import { copyImage, MEMHOG, readMemhog, removeMemhog, startMemhog, untilTicks } from './baselines/memhog-service.ts';
import { move } from './moves.ts';
import type { Bench, BenchOptions, BenchResult } from './registry.ts';
import { median } from './measure/statistics.ts';
import { atMost, below, type BenchCheck, type Reporter } from './report.ts';

const SIZES_MIB = [8, 128, 1024];
const flagsSchema = z.object({ sizes: z.array(z.int()) });
const LINK_RATE = '1gbit';
const TICKS_AFTER = 200;
const PODMAN_LIMIT_MS = 300_000;
const ARCHIVE = '/srv/checkpoint.tar.zst';

export interface Repetition {
  how: 'ums cold' | 'podman';
  mib: number;
  repetition: number;
  /** As memhog's own log has it: the longest time between two of its ticks. */
  downtime_ms: number;
  /** From the command to its end. */
  total_ms: number;
  /** What the copy carried: bytes on the wire, or the size of Podman's archive. */
  bytes: number;
  continuous: boolean;
  checksum_ok: boolean;
  parts: Record<string, number>;
}

/** `ums` cold beside what Podman itself can do: checkpoint --export, a plain copy, restore --import. */
export const baseline: Bench = {
  name: 'baseline',
  what: 'downtime and total of ums cold beside podman checkpoint --export + copy + restore --import',
  examples: ['baseline', 'baseline --sizes 8,128 --repeat 5'],
  options: (command) => void command.option('--sizes <mib,…>', 'MiB of state', wholeList(1, 65_536), [...SIZES_MIB]),
  async run(report, options): Promise<BenchResult> {
    const lab = Lab.open(undefined, (line) => report.say(`  ${line}`));
    const wasUp = lab.isUp;
    await lab.up({ hosts: ['alpha', 'beta'] });
    const before = lab.status().link;
    try {
      const [alpha, beta] = [lab.host('alpha'), lab.host('beta')];
      await removeMemhog(lab.hosts);
      await alpha.importImage(MEMHOG);
      await copyImage(alpha, beta);
      const link = await setLink(report, lab);
      const repetitions = await measureAll(report, lab, options);
      return { checks: judge(repetitions), figures: { link, workload: WORKLOAD, baseline: BASELINE, repetitions } };
    } finally {
      if (!wasUp && !options.keep) await lab.down();
      else {
        await removeMemhog(lab.hosts);
        await lab.setLink({ ...before, rate: before.rate_bps === null ? 'max' : `${before.rate_bps}bit` });
      }
    }
  },
};

const WORKLOAD = 'memhog: random memory, one tick a millisecond into a file in its writable layer, no dirtying';
const BASELINE =
  'podman container checkpoint --export (its default zstd), plain HTTP over the same link (ssh would be slower), restore --import';

async function setLink(report: Reporter, lab: Lab): Promise<Record<string, unknown>> {
  const measured = await lab.link({ rate: LINK_RATE, delay_ms: 0, loss_percent: 0 });
  const carries = formatRate(measured.rate_bps);
  report.say(
    `The link: asked for ${LINK_RATE}, carries ${carries} (iperf3), ${formatDuration(measured.rtt_ms)} there and back.`,
  );
  for (const line of [`Workload: ${WORKLOAD}.`, `Beside it: ${BASELINE}.`]) report.say(wrap(line, 78).join('\n'));
  report.say('');
  return { rate: LINK_RATE, delay_ms: 0, loss_percent: 0, measured };
}

async function measureAll(report: Reporter, lab: Lab, options: BenchOptions): Promise<Repetition[]> {
  const { sizes } = flagsSchema.parse(options.flags);
  const all: Repetition[] = [];
  for (const mib of sizes) {
    for (let repetition = 1; repetition <= options.repeat; repetition += 1) {
      for (const how of ['podman', 'ums cold'] as const) {
        options.signal.throwIfAborted();
        const one = await measureOne(lab, how, mib, repetition);
        all.push(one);
        report.event('repetition', { ...one });
        await options.results.repetition(`${how.replace(' ', '-')}-${mib}-${repetition}`, one);
        report.say(
          `  ${String(mib).padStart(5)} MiB  ${how.padEnd(9)} #${repetition}: down ${formatDuration(one.downtime_ms)}, total ${formatDuration(one.total_ms)}`,
        );
      }
    }
  }
  report.say(`\n${table(all)}`);
  return all;
}

async function measureOne(lab: Lab, how: Repetition['how'], mib: number, repetition: number): Promise<Repetition> {
  const [alpha, beta] = [lab.host('alpha'), lab.host('beta')];
  await removeMemhog([alpha, beta]);
  await startMemhog(alpha, mib);
  const carried = how === 'podman' ? await byPodman(alpha, beta) : await byUms(lab);
  await untilTicks(beta, TICKS_AFTER);
  const log: TickLog = await readMemhog(beta);
  await removeMemhog([alpha, beta]);
  return {
    how,
    mib,
    repetition,
    downtime_ms: log.longest_gap_ms,
    ...carried,
    continuous: log.continuous,
    checksum_ok: log.checksums_ok > 0 && log.checksums_bad === 0,
  };
}

type Carried = Pick<Repetition, 'total_ms' | 'bytes' | 'parts'>;

async function byUms(lab: Lab): Promise<Carried> {
  const began = performance.now();
  const { migration } = await move(lab, MEMHOG, 'alpha', 'beta', { visible: false, words: ['--technique', 'cold'] });
  const parts = Object.fromEntries(migration.steps.map((step) => [step.name, step.duration_ms]));
  if (migration.downtime_ms !== null) parts['agents_downtime'] = migration.downtime_ms;
  return { total_ms: performance.now() - began, bytes: migration.bytes_on_wire, parts };
}

async function byPodman(alpha: Host, beta: Host): Promise<Carried> {
  for (const host of [alpha, beta]) await host.exec('rm', ['-f', ARCHIVE]);
  const server = await serveFiles(alpha);
  try {
    return await exportAndImport(alpha, beta);
  } finally {
    await server.stop();
    for (const host of [alpha, beta]) await host.exec('rm', ['-f', ARCHIVE]);
  }
}

async function exportAndImport(alpha: Host, beta: Host): Promise<Carried> {
  const parts: Record<string, number> = {};
  const timed = async (name: string, act: () => Promise<unknown>) => {
    const began = performance.now();
    await act();
    parts[name] = performance.now() - began;
  };
  const began = performance.now();
  const limit = { timeout_ms: PODMAN_LIMIT_MS };
  const checkpoint = ['container', 'checkpoint', '--export', ARCHIVE, MEMHOG];
  await timed('checkpoint', () => alpha.exec('podman', checkpoint, limit));
  await timed('copy', () => fetchFile(alpha, beta, ARCHIVE));
  await timed('restore', () => beta.exec('podman', ['container', 'restore', '--import', ARCHIVE], limit));
  const total_ms = performance.now() - began;
  const { stdout } = await alpha.exec('stat', ['--format', '%s', ARCHIVE]);
  return { total_ms, bytes: Number(stdout.trim()), parts };
}

function of(all: readonly Repetition[], how: Repetition['how'], mib: number): Repetition[] {
  return all.filter((one) => one.how === how && one.mib === mib);
}

function judge(all: readonly Repetition[]): BenchCheck[] {
  const sizes = [...new Set(all.map((one) => one.mib))];
  return [
    ...sizes.map((mib) =>
      below(
        `downtime at ${mib} MiB, ms (limit: podman)`,
        median(of(all, 'ums cold', mib).map((one) => one.downtime_ms)),
        median(of(all, 'podman', mib).map((one) => one.downtime_ms)),
      ),
    ),
    atMost('restarts of the workload', all.filter((one) => !one.continuous).length, 0),
    atMost('changed memory', all.filter((one) => !one.checksum_ok).length, 0),
  ];
}

function spread(values: readonly number[]): string {
  return `${formatDuration(Math.min(...values))} – ${formatDuration(Math.max(...values))}`;
}

function table(all: readonly Repetition[]): string {
  const rows = [...new Set(all.map((one) => one.mib))].flatMap((mib) =>
    (['podman', 'ums cold'] as const).map((how) => ({ mib, how, own: of(all, how, mib) })),
  );
  return formatTable(
    [
      { title: 'MiB', value: (row) => String(row.mib), align: 'right' },
      { title: 'how', value: (row) => row.how },
      {
        title: 'downtime',
        value: (row) => formatDuration(median(row.own.map((one) => one.downtime_ms))),
        align: 'right',
      },
      { title: 'spread', value: (row) => spread(row.own.map((one) => one.downtime_ms)) },
      { title: 'total', value: (row) => formatDuration(median(row.own.map((one) => one.total_ms))), align: 'right' },
      { title: 'copied', value: (row) => formatBytes(median(row.own.map((one) => one.bytes))), align: 'right' },
    ],
    rows,
  );
}
