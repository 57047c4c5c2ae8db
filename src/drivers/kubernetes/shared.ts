import { readdirSync, readlinkSync, type Stats, statSync } from 'node:fs';
import { isMissing, readIfThere } from '../oci/cgroup.ts';

/**
 * What containers of one pod have open together beside the files of their volumes. Each is dumped by itself, and would be
 * restored with one of its own. Asked of /proc at once, because the service may stand still meanwhile.
 */

/** Descriptors of one process that are looked at; a process may have a million. */
const DESCRIPTORS_MAX = 65_536;
const SYSTEM_V = /\s\/SYSV[0-9a-f]{8}/;

type Processes = readonly number[];

/** What two of the groups of processes share, in words that complete "they share …"; undefined when nothing. */
export function sharedBetween(groups: readonly Processes[]): string | undefined {
  if (groups.filter(usesSystemV).length > 1) return 'System V memory, or both have some';
  const seen = new Map<string, number>();
  for (const [at, pids] of groups.entries()) {
    for (const pid of pids) {
      for (const [key, what] of [...descriptorsOf(pid), ...mappingsOf(pid)]) {
        const before = seen.get(key);
        if (before !== undefined && before !== at) return what;
        seen.set(key, at);
      }
    }
  }
  return undefined;
}

/** Whose images keep the System V objects: they must be those of whoever has mapped some. */
export function keeperOfSystemV(groups: readonly Processes[]): number {
  return Math.max(0, groups.findIndex(usesSystemV));
}

function usesSystemV(pids: Processes): boolean {
  return pids.some((pid) => SYSTEM_V.test(readIfThere(`/proc/${pid}/maps`) ?? ''));
}

type Found = [key: string, what: string];

function descriptorsOf(pid: number): Found[] {
  const names = unlessGone(() => readdirSync(`/proc/${pid}/fd`)) ?? [];
  return names.slice(0, DESCRIPTORS_MAX).flatMap((name): Found[] => {
    const path = `/proc/${pid}/fd/${name}`;
    const target = unlessGone(() => readlinkSync(path)) ?? '';
    if (/^(?:pipe|socket):\[\d+\]$/.test(target)) return [[target, 'a pipe or socket']];
    if (!target.startsWith('/')) return [];
    const stats = unlessGone(() => statSync(path));
    if (stats?.isFIFO() === true) return [[identity(stats), `the named pipe ${target}`]];
    return stats?.isFile() === true && stats.nlink === 0 ? [[identity(stats), `the deleted file ${target}`]] : [];
  });
}

function identity({ dev, ino }: Stats): string {
  return `${dev}:${ino}`;
}

/** Memory that is shared without a name (proc(5): /proc/PID/maps). */
function mappingsOf(pid: number): Found[] {
  const lines = (readIfThere(`/proc/${pid}/maps`) ?? '').split('\n');
  return lines.flatMap((line): Found[] => {
    const [, mode = '', , device = '', inode = ''] = line.split(/\s+/);
    if (mode[3] !== 's' || !line.endsWith(' (deleted)')) return [];
    return [[`memory ${device} ${inode}`, 'memory that has no name']];
  });
}

function unlessGone<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}
