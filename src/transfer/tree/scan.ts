import { type BigIntStats, lstatSync, readdirSync, readFileSync } from 'node:fs';
import { setImmediate } from 'node:timers/promises';
import { UmsError } from '#src/telemetry/errors.ts';
import { type BytePath, fromText, join, toBytes, toText } from './paths.ts';
import { Snapshot } from './snapshot.ts';

/** See Snapshot for the memory that this many entries take. */
export const ENTRY_LIMIT = 5_000_000;

/** The walk uses synchronous calls (five times as fast for small stats) and lets others run between such slices. */
const SLICE_MS = 8;

/** What lstat and readdir say of something that went away or was replaced after its name was read. */
const VANISHED = new Set(['ENOENT', 'ENOTDIR', 'ESTALE', 'ELOOP']);

export interface ScanOptions {
  signal?: AbortSignal;
  /** For tests; ENTRY_LIMIT otherwise. */
  maxEntries?: number;
}

/**
 * Walks a tree without following symbolic links and without leaving its file system. Names come in byte order, a
 * directory before what is below it. What vanishes meanwhile is left out.
 */
export async function scanTree(root: string, options: ScanOptions = {}): Promise<Snapshot> {
  const limit = options.maxEntries ?? ENTRY_LIMIT;
  const snapshot = new Snapshot(BigInt(Date.now()) * 1_000_000n);
  const base = fromText(root);
  const rootStats = inspect(base);
  if (rootStats === undefined || !rootStats.isDirectory()) {
    throw new UmsError('UMS_E_TRANSFER', {
      message: `${root} is not a directory, so its files cannot be sent`,
      fault: 'source',
      mend: 'Check that the service and its volumes still exist.',
    });
  }
  const mounts = mountsBelow(base);
  // Paths that wait for their turn, the next one last. Bounded by `limit`, as every one becomes an entry or vanishes.
  const waiting: BytePath[] = [''];
  let sliceEnds = performance.now() + SLICE_MS;
  for (let path = waiting.pop(); path !== undefined; path = waiting.pop()) {
    if (performance.now() > sliceEnds) {
      await setImmediate();
      options.signal?.throwIfAborted();
      sliceEnds = performance.now() + SLICE_MS;
    }
    const full = path === '' ? base : `${base}/${path}`;
    const stats = path === '' ? rootStats : inspect(full);
    if (stats === undefined) continue;
    const isDirectory = stats.isDirectory();
    // Overlay gives files of different layers different device numbers, so only a directory's number shows a boundary.
    if (path !== '' && (mounts.has(full) || (isDirectory && stats.dev !== rootStats.dev))) {
      snapshot.mounts.push(path);
      // The engine makes a missing file to mount on; an empty directory in its place keeps the shape of the tree.
      if (isDirectory) snapshot.add(path, stats);
      continue;
    }
    snapshot.add(path, stats);
    if (!isDirectory) continue;
    const names = list(full);
    if (snapshot.count + waiting.length + names.length > limit) throw tooMany(root, limit);
    for (const name of names) waiting.push(join(path, name));
  }
  return snapshot;
}

function tooMany(root: string, limit: number): UmsError {
  return new UmsError('UMS_E_TRANSFER', {
    message: `${root} holds more than ${limit.toLocaleString('en')} files, which is more than ums moves`,
    fault: 'user',
    mend: 'Move the many files into a volume that both systems mount.',
  });
}

function inspect(full: BytePath): BigIntStats | undefined {
  try {
    return lstatSync(toBytes(full), { bigint: true });
  } catch (error) {
    return ignoreVanished(error, full);
  }
}

/** Names in a directory in reverse byte order, so that a stack gives them back in byte order. */
function list(full: BytePath): BytePath[] {
  try {
    const names = readdirSync(toBytes(full), { encoding: 'buffer' }).map((name) => name.toString('latin1'));
    return names.sort((left, right) => (left < right ? 1 : left > right ? -1 : 0));
  } catch (error) {
    ignoreVanished(error, full);
    return [];
  }
}

function ignoreVanished(error: unknown, full: BytePath): undefined {
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  if (typeof code === 'string' && VANISHED.has(code)) return undefined;
  throw new UmsError('UMS_E_TRANSFER', {
    message: `cannot read ${toText(full)}: ${error instanceof Error ? error.message : String(error)}`,
    fault: 'source',
    mend: 'Look at the file system of the source for errors.',
    cause: error,
  });
}

/** Mount points strictly below a directory, as this process sees them: bind mounts too, which share a device number. */
function mountsBelow(base: BytePath): Set<BytePath> {
  const found = new Set<BytePath>();
  for (const line of readFileSync('/proc/self/mountinfo', 'latin1').split('\n')) {
    const escaped = line.split(' ')[4];
    if (escaped === undefined) continue;
    const point = escaped.replaceAll(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(parseInt(octal, 8)));
    if (point.startsWith(`${base}/`)) found.add(point);
  }
  return found;
}
