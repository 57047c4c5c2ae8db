import { lstatSync, readFileSync, statSync } from 'node:fs';
import { setImmediate } from 'node:timers/promises';
import { fromText } from './paths.ts';
import type { TreeLocation } from './send.ts';

/** Far above what the kernel allows by default (65,530 mappings a process); beyond it a file is not a real maps file. */
const LINES_LIMIT = 1_000_000;

/**
 * Files ("dev:ino") that these processes have mapped shared and writable. Writing to a page that is already dirty moves
 * no time stamp, and on tmpfs none ever does, so such files go in every pass.
 *
 * Behind an overlay a mapping names the overlay's file, not the one in its upper layer; for these, the mapping's path is
 * looked up in the trees that are upper layers. A file too many only costs its transfer.
 */
export async function sharedWritableMappings(
  pids: Iterable<number>,
  trees: readonly TreeLocation[] = [],
): Promise<Set<string>> {
  const found = new Set<string>();
  const uppers = trees.filter((tree) => tree.kind === 'overlay-upper').map((tree) => fromText(tree.path));
  const seen = new Set<string>();
  for (const pid of pids) {
    // Small files, read at once; the pause lets the rest of the agent run between two processes.
    await setImmediate();
    for (const mapping of readMappings(pid)) {
      found.add(mapping.identity);
      const identity = identityOf(`/proc/${pid}/map_files/${mapping.range}`, true);
      if (identity !== undefined) found.add(identity);
      if (seen.has(mapping.path)) continue;
      seen.add(mapping.path);
      for (const upper of uppers) {
        const file = identityOf(upper + mapping.path, false);
        if (file !== undefined) found.add(file);
      }
    }
  }
  return found;
}

export interface SharedMapping {
  /** As in /proc/PID/map_files. */
  range: string;
  identity: string;
  /** As the process sees it, byte string. */
  path: string;
}

/** Lines of the form "start-end perms offset major:minor inode   path", numbers but the inode in hexadecimal. */
export function parseMappings(maps: string): SharedMapping[] {
  const found: SharedMapping[] = [];
  for (const line of maps.split('\n').slice(0, LINES_LIMIT)) {
    const parts = /^([0-9a-f]+-[0-9a-f]+) .w.s [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) ([0-9]+) +(\/.*)$/.exec(line);
    if (parts === null) continue;
    const [, range = '', major = '0', minor = '0', inode = '0', path = ''] = parts;
    const dev = deviceNumber(BigInt(`0x${major}`), BigInt(`0x${minor}`));
    const plain = path.replaceAll('\\012', '\n').replace(/ \(deleted\)$/, '');
    found.push({ range, identity: `${dev}:${inode}`, path: plain });
  }
  return found;
}

/** st_dev as the C library puts it together. */
export function deviceNumber(major: bigint, minor: bigint): bigint {
  return ((major & 0xfffff000n) << 32n) | ((major & 0xfffn) << 8n) | ((minor & 0xffffff00n) << 12n) | (minor & 0xffn);
}

function readMappings(pid: number): SharedMapping[] {
  try {
    return parseMappings(readFileSync(`/proc/${pid}/maps`, 'latin1'));
  } catch (error) {
    // A process that ended has no mappings. Anything else must not pass as "none".
    if (isGone(error)) return [];
    throw error;
  }
}

function identityOf(path: string, follow: boolean): string | undefined {
  try {
    const bytes = Buffer.from(path, 'latin1');
    const stats = follow ? statSync(bytes, { bigint: true }) : lstatSync(bytes, { bigint: true });
    return `${stats.dev}:${stats.ino}`;
  } catch (error) {
    if (isGone(error)) return undefined;
    throw error;
  }
}

function isGone(error: unknown): boolean {
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  return typeof code === 'string' && ['ENOENT', 'ESRCH', 'ENOTDIR', 'ELOOP', 'ENAMETOOLONG'].includes(code);
}
