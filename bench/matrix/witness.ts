import { readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import type { Host } from '#lab/host.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { parsePulseLog, type PulseLog } from '../measure/pulse-log.ts';
import type { Workload } from './containers.ts';

/**
 * The workload as the machine sees it, whatever engine, capsule or approach it runs under: processes that are called so,
 * among all of a host, and the log that each names, in its root file system. So no engine is asked whether a service
 * went on.
 */
const LIMIT_MS = 60_000;
const POLL_MS = 50;

/** Numbers of its processes on a host, as the machine counts; of those that have ended none. */
export function witnesses(host: Host, program: Workload = 'pulse'): number[] {
  return host.processes().filter((pid) => {
    try {
      return new RegExp(`^\\d+ \\(${program}\\) [^ZX] `).test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
    } catch {
      // It has ended since the list was made.
      return false;
    }
  });
}

/** What it was told to write its log to. */
export async function logOf(pid: number): Promise<string> {
  const words = (await readFile(`/proc/${pid}/cmdline`, 'utf8')).split('\0');
  const at = words.indexOf('--log');
  const path = at < 0 ? undefined : words[at + 1];
  if (path?.startsWith('/') === true) return path;
  throw new UmsError('UMS_E_LAB', { message: `Process ${pid} names no log: ${words.join(' ')}`, fault: 'service' });
}

export async function readLog(pid: number): Promise<PulseLog> {
  return parsePulseLog(await readFile(`/proc/${pid}/root${await logOf(pid)}`, 'utf8'));
}

async function until(
  pid: number,
  what: string,
  signal: AbortSignal,
  wanted: (log: PulseLog) => boolean,
): Promise<PulseLog> {
  const limit = Date.now() + LIMIT_MS;
  let problem = 'its log does not show it';
  while (Date.now() < limit) {
    signal.throwIfAborted();
    try {
      const log = await readLog(pid);
      if (wanted(log)) return log;
    } catch (error) {
      problem = error instanceof Error ? error.message : String(error);
    }
    await delay(POLL_MS, undefined, { signal });
  }
  throw new UmsError('UMS_E_LAB', { message: `The workload ${what}: ${problem}`, fault: 'service' });
}

/** Its one process, once it has ticked for a while: from then on it can be told whether it stands still. */
export async function beganOn(host: Host, ticks: number, signal: AbortSignal): Promise<number> {
  const [pid] = await allBeganOn(host, { program: 'pulse', processes: 1 }, ticks, signal);
  if (pid !== undefined) return pid;
  throw new Error('one process was waited for');
}

/** All of its processes, once each has ticked for a while. */
export async function allBeganOn(
  host: Host,
  { program, processes }: { program: Workload; processes: number },
  ticks: number,
  signal: AbortSignal,
): Promise<number[]> {
  const limit = Date.now() + LIMIT_MS;
  while (witnesses(host, program).length < processes && Date.now() < limit) {
    await delay(POLL_MS, undefined, { signal });
  }
  const pids = witnesses(host, program);
  if (pids.length !== processes) {
    const message = `${pids.length} processes of the workload run on ${host.name} instead of ${processes}`;
    throw new UmsError('UMS_E_LAB', { message, fault: 'service' });
  }
  for (const pid of pids) {
    await until(pid, 'does not tick', signal, (log) => (log.entries.at(-1)?.n ?? 0) >= ticks);
  }
  return pids;
}

/** Its log once it has ticked after this moment, and has recomputed all of its memory since. */
export async function provedAfter(pid: number, at_ms: number, signal: AbortSignal): Promise<PulseLog> {
  const ticked = (log: PulseLog): boolean => (log.entries.at(-1)?.at_ms ?? 0) > at_ms;
  const before = await until(pid, 'does not go on', signal, ticked);
  const sums = before.checksums_ok + before.checksums_bad;
  process.kill(pid, 'SIGUSR1');
  return until(pid, 'does not check its memory', signal, (log) => log.checksums_ok + log.checksums_bad > sums);
}
