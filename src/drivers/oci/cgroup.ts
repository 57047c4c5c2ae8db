import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { UmsError } from '#src/telemetry/errors.ts';

/**
 * What the kernel says about a container's cgroup. The freezer's own file is the truth about whether a service runs:
 * engines remember, the kernel knows. Its files are read and written at once, without a thread's help: the kernel answers
 * in microseconds, and a service often stands still meanwhile.
 */
const CGROUP_ROOT = '/sys/fs/cgroup';
/** Nested cgroups of one container that are looked at; more is not a container but a host. */
const MAX_GROUPS = 10_000;

export interface Freezer {
  version: 1 | 2;
  /** Directory of the cgroup in the hierarchy that has the freezer. */
  directory: string;
}

/** A file of the kernel's; undefined when it, or what it tells of, is gone. */
export function readIfThere(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

/** ENODEV and ESRCH are what cgroup and proc files answer when their object goes away while they are read. */
export function isMissing(error: unknown): boolean {
  if (!(error instanceof Error) || !('code' in error)) return false;
  return error.code === 'ENOENT' || error.code === 'ESRCH' || error.code === 'ENODEV' || error.code === 'ENOTDIR';
}

/** `text` is /proc/PID/cgroup. The v2 hierarchy is preferred wherever it has a freezer for this group. */
export function parseCgroups(text: string): { unified: string | undefined; freezer: string | undefined } {
  let unified: string | undefined;
  let freezer: string | undefined;
  for (const line of text.split('\n')) {
    const [hierarchy, controllers, ...rest] = line.split(':');
    if (hierarchy === undefined || controllers === undefined) continue;
    const path = rest.join(':');
    if (hierarchy === '0' && controllers === '') unified = path;
    if (controllers.split(',').includes('freezer')) freezer = path;
  }
  return { unified, freezer };
}

/** The freezer of the cgroup a process is in; undefined when the process is gone. */
export async function freezerOf(pid: number): Promise<Freezer | undefined> {
  const text = readIfThere(`/proc/${pid}/cgroup`);
  if (text === undefined) return undefined;
  const groups = parseCgroups(text);
  if (groups.unified !== undefined && groups.unified !== '/') {
    for (const root of [CGROUP_ROOT, join(CGROUP_ROOT, 'unified')]) {
      const directory = join(root, groups.unified);
      if (readIfThere(join(directory, 'cgroup.freeze')) !== undefined) return { version: 2, directory };
    }
  }
  if (groups.freezer !== undefined && groups.freezer !== '/') {
    const directory = join(CGROUP_ROOT, 'freezer', groups.freezer);
    if (readIfThere(join(directory, 'freezer.state')) !== undefined) return { version: 1, directory };
  }
  return undefined;
}

/** True when the group is, or is becoming, frozen. */
export async function isFrozen(freezer: Freezer): Promise<boolean> {
  if (freezer.version === 2) return readIfThere(join(freezer.directory, 'cgroup.freeze'))?.trim() === '1';
  const state = readIfThere(join(freezer.directory, 'freezer.state'))?.trim();
  return state === 'FROZEN' || state === 'FREEZING';
}

/** True when every task of the group has stopped. */
export async function isFullyFrozen(freezer: Freezer): Promise<boolean> {
  if (freezer.version === 2) {
    const events = readIfThere(join(freezer.directory, 'cgroup.events'));
    return events !== undefined && /^frozen 1$/m.test(events);
  }
  return readIfThere(join(freezer.directory, 'freezer.state'))?.trim() === 'FROZEN';
}

/**
 * Stops every task of the group where it stands, or lets them all go on: one write, which is what engines do too when
 * they pause a container. False when they did not all follow within the limit.
 */
export async function setFrozen(freezer: Freezer, frozen: boolean, limit_ms: number): Promise<boolean> {
  if (freezer.version === 2)
    writeFileSync(join(freezer.directory, 'cgroup.freeze'), frozen ? '1' : '0', { flag: 'r+' });
  else writeFileSync(join(freezer.directory, 'freezer.state'), frozen ? 'FROZEN' : 'THAWED', { flag: 'r+' });
  if (frozen) return await poll(() => isFullyFrozen(freezer), limit_ms, 1);
  return await poll(async () => !(await isFrozen(freezer)), limit_ms, 1);
}

/** Asks `condition` every few milliseconds until it holds; false when it did not within the limit. */
export async function poll(condition: () => Promise<boolean>, limit_ms: number, interval_ms = 5): Promise<boolean> {
  const end = performance.now() + limit_ms;
  for (;;) {
    if (await condition()) return true;
    if (performance.now() >= end) return false;
    await new Promise((resolve) => setTimeout(resolve, interval_ms));
  }
}

/** Process ids in the group and the groups below it (a service may make its own). */
export async function processesOf(freezer: Freezer): Promise<number[]> {
  const pids: number[] = [];
  const queue = [freezer.directory];
  for (let seen = 0; queue.length > 0; seen += 1) {
    if (seen > MAX_GROUPS) {
      throw new UmsError('UMS_E_SPECIFICATION', {
        message: `The service has more than ${MAX_GROUPS} control groups of its own`,
        fault: 'service',
      });
    }
    const directory = queue.pop();
    if (directory === undefined) break;
    const text = readIfThere(join(directory, 'cgroup.procs'));
    for (const line of (text ?? '').split('\n')) if (line !== '') pids.push(Number(line));
    for (const entry of listDirectories(directory)) queue.push(join(directory, entry));
  }
  return pids.filter((pid) => pid > 0).toSorted((left, right) => left - right);
}

function listDirectories(directory: string): string[] {
  try {
    const entries = readdirSync(directory, { withFileTypes: true });
    return entries.filter((entry) => entry.isDirectory()).map((entry) => entry.name);
  } catch (error) {
    if (isMissing(error)) return [];
    throw error;
  }
}

/** The process that traces this one (a CRIU at work), 0 when none does or the process is gone. */
export async function tracerOf(pid: number): Promise<number> {
  const status = readIfThere(`/proc/${pid}/status`);
  return Number(/^TracerPid:\s*(\d+)$/m.exec(status ?? '')?.[1] ?? '0');
}

/** Waits until no CRIU holds any of the processes: thawing them under its hands would break both. */
export async function waitUntilUntraced(pids: readonly number[], limit_ms: number): Promise<void> {
  const free = await poll(
    async () => {
      for (const pid of pids) if ((await tracerOf(pid)) !== 0) return false;
      return true;
    },
    limit_ms,
    20,
  );
  if (free) return;
  throw new UmsError('UMS_E_TIMEOUT', {
    message: 'CRIU still holds processes of the service',
    fault: 'ums',
    state: 'The service is frozen.',
    mend: 'Wait until the criu process ends and try again; do not kill it with SIGKILL.',
  });
}
