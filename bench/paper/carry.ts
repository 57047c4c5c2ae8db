import { setTimeout as delay } from 'node:timers/promises';
import type { Host } from '#lab/host.ts';
import type { Lab } from '#lab/lab.ts';
import type { Migration } from '#src/coordination/schema.ts';
import { continuity } from '../matrix/judge.ts';
import { allBeganOn, logOf, provedAfter, readLog, witnesses } from '../matrix/witness.ts';
import { type Gap, gapsOf, lengthOf, longestGap, type PulseLog } from '../measure/pulse-log.ts';
import { frozenAt, type Phases, phasesOf } from './phases.ts';
import type { PaperWork, Route } from './plan.ts';
import type { Moved, Way } from './ways.ts';

/** One move from the first host to the second, and what both hosts and the service itself say of it. */
export interface Carried {
  technique: string;
  /** As the paper measures: from the request until all of the service runs at the destination. */
  runs_ms: number;
  /** From the request until nothing is left to do. */
  total_ms: number;
  /** Of `ums migrate` alone. */
  command_ms: number;
  /** From the service's last progress at the source to its first at the destination, by its own log. */
  downtime_ms: number;
  phases: Phases;
  /** What must not be, and is. */
  problems: string[];
  bytes_on_wire: number;
  migration: Migration;
  inner: Migration | null;
}

const CALM_TICKS = 500;
const GONE_LIMIT_MS = 10_000;
const POLL_MS = 100;

export async function carry(
  lab: Lab,
  route: Route,
  work: PaperWork,
  way: Way,
  asked: { technique: string; signal: AbortSignal },
): Promise<Carried> {
  const { technique, signal } = asked;
  const [alpha, beta] = [lab.host('alpha'), lab.host('beta')];
  await way.start();
  const program = { program: work.image, processes: work.processes };
  const before = await logsOf(await allBeganOn(alpha, program, CALM_TICKS, signal), (pid) => readLog(pid));
  const moved = await way.move(technique);
  signal.throwIfAborted();
  const { migration, from: began_at, to } = moved.moved;
  const there = await onlyThere(alpha, beta, work);
  const after = await logsOf(there.pids, (pid) => provedAfter(pid, to, signal));
  const problems = [
    ...there.problems,
    ...(await leftBehind(way)),
    ...(migration.approach === route.approach ? [] : [`it moved at ${migration.approach}`]),
    ...[...after].flatMap(([path, log]) => wentOn(path, before.get(path), log)),
  ];
  const from = began_at - moved.prepared_ms;
  const away = awayTime([...after.values()], { from, to }, moved);
  if (away === undefined) problems.push('no time was seen in which it stood still');
  return {
    technique: migration.technique,
    runs_ms: (away?.to_ms ?? to) - from,
    total_ms: to - from,
    command_ms: to - began_at,
    downtime_ms: away === undefined ? 0 : lengthOf(away),
    phases: phasesOf(migration, moved.inner, moved.prepared_ms, to - from),
    problems,
    bytes_on_wire: migration.bytes_on_wire,
    migration,
    inner: moved.inner,
  };
}

/** By the path that each process writes to, which stays the same wherever it runs. */
async function logsOf(
  pids: readonly number[],
  read: (pid: number) => Promise<PulseLog>,
): Promise<Map<string, PulseLog>> {
  const logs = new Map<string, PulseLog>();
  // One after the other: recomputing memory takes the processors that others would be proved with.
  for (const pid of pids) logs.set(await logOf(pid), await read(pid));
  return logs;
}

async function onlyThere(source: Host, destination: Host, work: PaperWork) {
  const limit = Date.now() + GONE_LIMIT_MS;
  while (witnesses(source, work.image).length > 0 && Date.now() < limit) await delay(POLL_MS);
  const pids = witnesses(destination, work.image);
  const left = witnesses(source, work.image).length;
  const problems = [
    ...(left === 0 ? [] : [`${left} of its processes are on ${source.name}, too`]),
    ...(pids.length === work.processes ? [] : [`${pids.length} of ${work.processes} run on ${destination.name}`]),
  ];
  return { pids, problems };
}

async function leftBehind(way: Way): Promise<string[]> {
  const limit = Date.now() + GONE_LIMIT_MS;
  let left = await way.left();
  while (left.length > 0 && Date.now() < limit) {
    await delay(POLL_MS);
    left = await way.left();
  }
  return left.map((what) => `${what} is left at the source`);
}

function wentOn(path: string, before: PulseLog | undefined, after: PulseLog): string[] {
  if (before === undefined) return [`nobody wrote ${path} before`];
  const unproved = after.checksums_ok + after.checksums_bad === 0 ? ['its memory was not proved'] : [];
  return [...continuity(before, after), ...unproved].map((problem) => `${path}: ${problem}`);
}

/** From the first of its processes that stood still to the last that went on; each by its gap in that moment. */
export function awayTime(
  logs: readonly PulseLog[],
  { from, to }: { from: number; to: number },
  { moved, inner }: Pick<Moved, 'inner'> & { moved: { migration: Pick<Migration, 'started_at' | 'steps'> } },
): Gap | undefined {
  const frozen_at = frozenAt(inner ?? moved.migration);
  const gaps = logs.map((log) => {
    const all = gapsOf(log);
    const known = frozen_at === undefined ? undefined : longestGap(all, frozen_at, frozen_at);
    return known ?? longestGap(all, from, to);
  });
  const seen = gaps.filter((gap) => gap !== undefined);
  if (seen.length === 0 || seen.length < gaps.length) return undefined;
  return {
    from_ms: Math.min(...seen.map((gap) => gap.from_ms)),
    to_ms: Math.max(...seen.map((gap) => gap.to_ms)),
  };
}
