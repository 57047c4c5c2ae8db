import { z } from 'zod';
import { Lab } from '#lab/lab.ts';
import { formatDuration, formatTable } from '#src/cli/format.ts';
import { toUmsError } from '#src/telemetry/errors.ts';
import { type Technique, TECHNIQUES } from './cases.ts';
import { someOf, whole } from './flags.ts';
import { type Footprint, footprint, growth, LEAKS } from './measure/footprint.ts';
import { type Move, move } from './moves.ts';
import { LoadedRedis, type Verified } from './redis/load.ts';
import { REDIS, removeRedis } from './redis/service.ts';
import type { Bench, BenchResult } from './registry.ts';
import { median } from './measure/statistics.ts';
import { atMost, type Reporter } from './report.ts';

const DEFAULT_MIB = 64;
const flagsSchema = z.object({ mib: z.int(), moves: z.int(), technique: z.array(z.enum(TECHNIQUES)).optional() });
const WRITES_PER_S = 200;
const WRITES_BETWEEN = 50;
/** After this many failures in a row there is nothing left to learn. */
const FAILURES_LIMIT = 3;

interface Trip {
  move: number;
  source: string;
  destination: string;
  technique: Technique | null;
  ok: boolean;
  downtime_ms: number | null;
  total_ms: number | null;
  client_downtime_ms: number;
  error?: string;
}

/** Back and forth, again and again, with a client that writes: nothing may fail, be lost, or be left behind. */
export const soak: Bench = {
  name: 'soak',
  what: 'many moves of a Redis under load: no failure, no lost write, nothing left behind',
  examples: ['soak --moves 50 --json', 'soak --moves 8 --technique cold,pre-copy,post-copy,hybrid'],
  options: (command) =>
    void command
      .option('--moves <n>', 'how many migrations', whole(2, 100_000), 50)
      .option('--technique <names>', 'in turn; without it, ums chooses', someOf(TECHNIQUES))
      .option('--mib <n>', 'MiB of state', whole(1, 65_536), DEFAULT_MIB),
  async run(report, options): Promise<BenchResult> {
    const lab = Lab.open(undefined, (line) => report.say(`  ${line}`));
    const wasUp = lab.isUp;
    await lab.up({ hosts: ['alpha', 'beta'] });
    await removeRedis(lab);
    const { mib, moves, technique = [] } = flagsSchema.parse(options.flags);
    const redis = await LoadedRedis.start(lab, 'alpha', mib * 1024 * 1024);
    try {
      await redis.writer.startWriting(WRITES_PER_S);
      await redis.untilWritten(WRITES_BETWEEN);
      const { trips, prints } = await goBackAndForth(report, lab, redis, { moves, technique }, options.signal);
      const verified = await redis.verify();
      await redis.writer.stopWriting();
      return result(report, trips, prints, verified, mib);
    } finally {
      await redis.close();
      if (!wasUp && !options.keep) await lab.down();
      else await removeRedis(lab);
    }
  },
};

interface Plan {
  moves: number;
  /** Taken in turn; none leaves the choice to ums. */
  technique: readonly Technique[];
}

async function goBackAndForth(report: Reporter, lab: Lab, redis: LoadedRedis, plan: Plan, signal: AbortSignal) {
  const trips: Trip[] = [];
  const prints: Footprint[] = [];
  let [here, there] = ['alpha', 'beta'];
  let failuresInARow = 0;
  for (let number = 1; number <= plan.moves && failuresInARow < FAILURES_LIMIT; number += 1) {
    signal.throwIfAborted();
    const technique = plan.technique[(number - 1) % Math.max(1, plan.technique.length)];
    const trip = await oneTrip(lab, redis, number, here, there, technique);
    trips.push(trip);
    report.event('move', { ...trip });
    failuresInARow = trip.ok ? 0 : failuresInARow + 1;
    if (trip.ok) [here, there] = [there, here];
    if (!trip.ok) report.say(`  move ${number} ${trip.source} → ${trip.destination} FAILED: ${trip.error ?? ''}`);
    if (here !== 'alpha') continue;
    const print = footprint(lab);
    prints.push(print);
    report.event('footprint', { move: number, ...print });
    report.say(roundTripLine(number, trip, print));
  }
  return { trips, prints };
}

function roundTripLine(number: number, trip: Trip, print: Footprint): string {
  const leaks = LEAKS.map((leak) => `${print[leak]} ${leak.replace('_', ' ')}`).join(', ');
  return `  ${String(number).padStart(4)}  client waited ${formatDuration(trip.client_downtime_ms)}; ${leaks}`;
}

async function oneTrip(
  lab: Lab,
  redis: LoadedRedis,
  number: number,
  source: string,
  destination: string,
  technique: Technique | undefined,
): Promise<Trip> {
  const words = technique === undefined ? [] : ['--technique', technique];
  const began = Date.now();
  try {
    const moved: Move = await move(lab, REDIS, source, destination, { visible: false, words });
    await redis.untilWritten(WRITES_BETWEEN);
    const { gap_ms } = await redis.writer.gap(moved.from, moved.to);
    const { downtime_ms, total_ms, technique: used } = moved.migration;
    return {
      move: number,
      source,
      destination,
      technique: used,
      ok: true,
      downtime_ms,
      total_ms,
      client_downtime_ms: gap_ms,
    };
  } catch (thrown) {
    const error = toUmsError(thrown);
    const { gap_ms } = await redis.writer.gap(began, Date.now());
    const text = `${error.code}: ${error.message}`;
    return {
      move: number,
      source,
      destination,
      technique: technique ?? null,
      ok: false,
      downtime_ms: null,
      total_ms: null,
      client_downtime_ms: gap_ms,
      error: text,
    };
  }
}

function result(
  report: Reporter,
  trips: readonly Trip[],
  prints: readonly Footprint[],
  verified: Verified,
  mib: number,
): BenchResult {
  const good = trips.filter((trip) => trip.ok);
  const rows = [
    { figure: 'downtime, measured by the agents', values: good.map((trip) => trip.downtime_ms ?? 0) },
    { figure: 'longest wait of the client', values: good.map((trip) => trip.client_downtime_ms) },
    { figure: 'total', values: good.map((trip) => trip.total_ms ?? 0) },
  ];
  report.say('');
  report.say(
    formatTable(
      [
        { title: `${good.length} moves of ${mib} MiB`, value: (row) => row.figure },
        { title: 'median', value: (row) => formatDuration(median(row.values)), align: 'right' },
        { title: 'least', value: (row) => formatDuration(Math.min(...row.values)), align: 'right' },
        { title: 'most', value: (row) => formatDuration(Math.max(...row.values)), align: 'right' },
      ],
      good.length === 0 ? [] : rows,
    ),
  );
  const checks = [
    atMost('failed moves', trips.length - good.length, 0),
    atMost('lost writes', verified.lost_writes, 0),
    atMost('changed checksums', verified.checksum_equal ? 0 : 1, 0),
    atMost('restarts of the service', verified.continuous ? 0 : 1, 0),
    ...LEAKS.map((leak) =>
      atMost(`growth of ${leak.replace('_', ' ')}`, growth(prints.map((print) => print[leak])), 0),
    ),
  ];
  return {
    checks,
    figures: {
      workload: { service: 'redis', state_mib: mib, writes_per_s: WRITES_PER_S },
      moves: trips,
      footprints: prints,
      ...verified,
    },
  };
}
