import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { setTimeout as wait } from 'node:timers/promises';
import { UmsError } from '#src/telemetry/errors.ts';

/** Between two looks; a stop or an end takes a few scheduler ticks. */
const POLL_MS = 2;
/** After so long in which not all have stopped they are let go for a moment. */
const LET_GO_MS = 200;
const MOMENT_MS = 20;
const PROCESSES_MAX = 100_000;
const GONE = new Set(['ENOENT', 'ESRCH', 'EACCES']);

/** What /proc/PID/stat says (proc(5)); undefined when the process is gone. */
interface Seen {
  pid: number;
  parent: number;
  state: string;
}

function unlessGone<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (error instanceof Error && 'code' in error && typeof error.code === 'string' && GONE.has(error.code)) return;
    throw error;
  }
}

function look(path: string, pid: number): Seen | undefined {
  const text = unlessGone(() => readFileSync(path, 'latin1'));
  if (text === undefined) return undefined;
  // The name before it may hold anything, closing parentheses too.
  const [state = '', parent = ''] = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return { pid, parent: Number(parent), state };
}

function all(): Seen[] {
  const pids = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
  return pids.slice(0, PROCESSES_MAX).flatMap((name) => look(`/proc/${name}/stat`, Number(name)) ?? []);
}

/**
 * The first process and all that descend from it. Orphans belong to it too, because it is what collects them (the init
 * makes it a subreaper). What was put into the container from outside has another parent and does not belong to it.
 */
export function family(root: number): number[] {
  if (root === 0) return [];
  const seen = all();
  if (!seen.some(({ pid }) => pid === root)) return [];
  const found = [root];
  for (let at = 0; at < found.length; at += 1) {
    for (const { pid, parent } of seen) if (parent === found[at]) found.push(pid);
  }
  return found;
}

/** Whether every thread of a process stands still: stopped, or ended and not collected. */
function standsStill(pid: number): boolean {
  const threads = unlessGone(() => readdirSync(`/proc/${pid}/task`)) ?? [];
  return threads.every((thread) =>
    'TZX'.includes(look(`/proc/${pid}/task/${thread}/stat`, Number(thread))?.state ?? 'X'),
  );
}

export function allStandStill(pids: readonly number[]): boolean {
  return pids.every((pid) => standsStill(pid));
}

/** Those that somebody had stopped before. */
export function stoppedAlready(pids: readonly number[]): number[] {
  return pids.filter((pid) => look(`/proc/${pid}/stat`, pid)?.state === 'T');
}

export function signalAll(pids: readonly number[], signal: 'SIGSTOP' | 'SIGCONT' | 'SIGKILL'): void {
  for (const pid of pids) {
    try {
      process.kill(pid, signal);
    } catch (error) {
      if (!(error instanceof Error && 'code' in error && error.code === 'ESRCH')) throw error;
    }
  }
}

/**
 * Stops a whole family. A process that is not stopped yet may make another one, so it is looked for until two looks in a
 * row find the same ones, all of which stand still. One that has made another by vfork stands in the kernel until that
 * has begun its program, and cannot if that was stopped before: then all are let go for a moment, but those that somebody
 * else had stopped.
 */
export async function stopAll(root: number, stopped: readonly number[], limit_ms: number): Promise<void> {
  const end = performance.now() + limit_ms;
  let letGo_ms = performance.now() + LET_GO_MS;
  let before = '';
  while (performance.now() < end) {
    const pids = family(root);
    const now = pids.join(' ');
    if (now === before && allStandStill(pids)) return;
    before = now;
    if (performance.now() > letGo_ms) {
      signalAll(
        pids.filter((pid) => !stopped.includes(pid)),
        'SIGCONT',
      );
      await wait(MOMENT_MS);
      letGo_ms = performance.now() + LET_GO_MS;
      continue;
    }
    // One that is stopped already would keep a second one pending, and be dumped with it.
    signalAll(
      pids.filter((pid) => !standsStill(pid)),
      'SIGSTOP',
    );
    await wait(POLL_MS);
  }
  throw new UmsError('UMS_E_TIMEOUT', {
    message: 'The service could not be stopped: a process of it does not come back from the kernel.',
    fault: 'service',
    mend: 'Look at the storage or network file system that it waits for.',
  });
}

/** True when the condition holds in time. */
export async function until(holds: () => boolean, limit_ms: number): Promise<boolean> {
  const end = performance.now() + limit_ms;
  while (!holds()) {
    if (performance.now() > end) return false;
    await wait(POLL_MS);
  }
  return true;
}

/** Also when it has ended and is not collected. */
export function exists(pid: number): boolean {
  return existsSync(`/proc/${pid}`);
}

/** Every thread's id, of this container: what a service that arrives may not need. */
export function takenIds(): Set<number> {
  const taken = new Set<number>();
  for (const { pid } of all()) {
    for (const thread of unlessGone(() => readdirSync(`/proc/${pid}/task`)) ?? []) taken.add(Number(thread));
  }
  return taken;
}

export function threadIds(pids: readonly number[]): number[] {
  return pids.flatMap((pid) => (unlessGone(() => readdirSync(`/proc/${pid}/task`)) ?? []).map(Number));
}
