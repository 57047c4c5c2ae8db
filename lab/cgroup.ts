import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { UmsError } from '#src/telemetry/errors.ts';

/**
 * Control groups are how the lab finds its own processes: whatever was started in a lab is in the lab's group or beneath
 * it, however it was started and whatever became of its parent. Only the version 2 hierarchy is used; groups that the
 * lab did not make are never written to.
 */
const KILL_LIMIT_MS = 15_000;
const POLL_MS = 5;

/** Where the version 2 hierarchy is mounted: alone at /sys/fs/cgroup, or beside version 1 (often at …/unified). */
export function findCgroup2(mountinfo: string): string | undefined {
  for (const line of mountinfo.split('\n')) {
    const [mount, origin] = line.split(' - ');
    const fields = mount?.split(' ') ?? [];
    if (origin?.startsWith('cgroup2 ') === true && fields[3] === '/' && fields[4] !== undefined) return fields[4];
  }
  return undefined;
}

export function cgroup2Root(): string {
  const found = findCgroup2(readFileSync('/proc/self/mountinfo', 'utf8'));
  if (found !== undefined) return found;
  throw new UmsError('UMS_E_PREREQUISITE', {
    message: 'This machine has no version 2 cgroup hierarchy mounted at its root',
    fault: 'user',
    mend: 'Mount it: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified',
  });
}

/** Makes a group and hands down every controller that it has. Controllers that cannot be handed down are left out. */
export function makeCgroup(path: string): void {
  mkdirSync(path, { recursive: true });
}

export function handDownControllers(path: string): string[] {
  const controllers = readFileSync(join(path, 'cgroup.controllers'), 'utf8').trim().split(' ');
  return controllers.filter((controller) => {
    if (controller === '') return false;
    try {
      writeFileSync(join(path, 'cgroup.subtree_control'), `+${controller}`);
      return true;
    } catch {
      // A controller may be in use by the version 1 hierarchy, or be refused to a group that is itself limited.
      return false;
    }
  });
}

export function joinCgroup(path: string, pid: number): void {
  writeFileSync(join(path, 'cgroup.procs'), String(pid));
}

/** None of a group that is not there (any more): it may go while it is looked at. */
function subgroups(path: string): string[] {
  try {
    return readdirSync(path, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => join(path, entry.name));
  } catch (error) {
    if (error instanceof Error && 'code' in error && (error.code === 'ENOENT' || error.code === 'ENODEV')) return [];
    throw error;
  }
}

/** Process ids in the group and all groups beneath it. */
export function processesIn(path: string): number[] {
  const own = readOrEmpty(join(path, 'cgroup.procs'))
    .split('\n')
    .filter((line) => line !== '')
    .map(Number);
  return [...own, ...subgroups(path).flatMap((child) => processesIn(child))];
}

/** A group or a process may end between being listed and being read; then there is nothing in it. */
export function readOrEmpty(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

/** SIGKILL to everything in the group and beneath it, frozen or not, and waits until nothing is left. */
export async function killCgroup(path: string): Promise<void> {
  const limit = Date.now() + KILL_LIMIT_MS;
  while (processesIn(path).length > 0) {
    if (Date.now() > limit) {
      throw new UmsError('UMS_E_LAB', {
        message: `Processes ${processesIn(path).join(', ')} did not end on SIGKILL`,
        fault: 'ums',
        mend: 'A process in uninterruptible sleep has to be waited for; then run the command again.',
      });
    }
    killOnce(path);
    await sleep(POLL_MS);
  }
}

function killOnce(path: string): void {
  const file = join(path, 'cgroup.kill');
  if (existsSync(file)) {
    writeFileSync(file, '1');
    return;
  }
  // Kernels before 5.14 have no cgroup.kill.
  for (const pid of processesIn(path)) signalIfThere(pid, 'SIGKILL');
}

export function signalIfThere(pid: number, signal: NodeJS.Signals): boolean {
  try {
    process.kill(pid, signal);
    return true;
  } catch {
    return false;
  }
}

/** Removes an empty group with all groups beneath it. A group lingers for a moment after its last process was reaped. */
export async function removeCgroup(path: string): Promise<void> {
  const limit = Date.now() + KILL_LIMIT_MS;
  for (const child of subgroups(path)) await removeCgroup(child);
  while (existsSync(path)) {
    try {
      rmdirSync(path);
    } catch (error) {
      if (Date.now() > limit) throw error;
      await sleep(POLL_MS);
    }
  }
}

/**
 * The process that is number 1 in a process namespace directly beneath ours, among those of the group: a host's first
 * process. Containers on the host have a 1 as well, but one level deeper.
 */
export function firstProcessIn(path: string): number | undefined {
  const found = processesIn(path)
    .map((pid) => ({ pid, ids: namespaceIds(readOrEmpty(`/proc/${pid}/status`)) }))
    .filter(({ ids }) => ids.length >= 2 && ids.at(-1) === 1)
    .sort((a, b) => a.ids.length - b.ids.length);
  return found[0]?.pid;
}

export function namespaceIds(status: string): number[] {
  const line = status.split('\n').find((candidate) => candidate.startsWith('NSpid:'));
  return line === undefined ? [] : line.replace('NSpid:', '').trim().split(/\s+/).map(Number);
}
