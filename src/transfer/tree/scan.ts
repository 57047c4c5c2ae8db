import { type BigIntStats, lstatSync, readdirSync, readFileSync } from 'node:fs';
import { setImmediate } from 'node:timers/promises';
import { UmsError } from '#src/telemetry/errors.ts';
import type { DumpView } from './dump-view.ts';
import { type BytePath, fromText, join, nameOf, toBytes, toText } from './paths.ts';
import { NONE, Snapshot } from './snapshot.ts';

/** See Snapshot for the memory that this many entries take. */
export const ENTRY_LIMIT = 5_000_000;

/** The walk uses synchronous calls (five times as fast for small stats) and lets others run between such slices. */
const SLICE_MS = 8;

/** What lstat and readdir say of something that went away or was replaced after its name was read. */
const VANISHED = new Set(['ENOENT', 'ENOTDIR', 'ESTALE', 'ELOOP']);

export interface ScanOptions {
  signal?: AbortSignal | undefined;
  /** The walk before this one: directories that are as they were are not listed again. */
  since?: Snapshot | undefined;
  /** How some directories were when CRIU's dump had not begun. */
  view?: DumpView | undefined;
  /** For tests; ENTRY_LIMIT otherwise. */
  maxEntries?: number;
}

interface Waiting {
  path: BytePath;
  parent: number;
  /** Its entry in the snapshot before. */
  earlier: number;
}

/**
 * Walks a tree without following symbolic links and without leaving its file system. Names come in byte order, a
 * directory before what is below it. What vanishes meanwhile is left out.
 */
export async function scanTree(root: string, options: ScanOptions = {}): Promise<Snapshot> {
  const walk = new Walk(root, options);
  let sliceEnds = performance.now() + SLICE_MS;
  while (walk.step()) {
    if (performance.now() <= sliceEnds) continue;
    await setImmediate();
    options.signal?.throwIfAborted();
    sliceEnds = performance.now() + SLICE_MS;
  }
  return walk.snapshot;
}

class Walk {
  readonly snapshot: Snapshot;
  readonly #root: string;
  readonly #base: BytePath;
  readonly #rootStats: BigIntStats;
  readonly #mounts: ReadonlySet<BytePath>;
  readonly #since: Snapshot | undefined;
  readonly #view: DumpView | undefined;
  readonly #limit: number;
  /** What waits for its turn, the next one last. Bounded by the limit, as every one becomes an entry or vanishes. */
  readonly #waiting: Waiting[] = [];

  constructor(root: string, options: ScanOptions) {
    this.#root = root;
    this.#base = fromText(root);
    this.#limit = options.maxEntries ?? ENTRY_LIMIT;
    this.#view = options.view;
    this.snapshot = new Snapshot(BigInt(Date.now()) * 1_000_000n, options.since);
    const rootStats = this.#inspect('');
    if (rootStats === undefined || !rootStats.isDirectory()) {
      throw new UmsError('UMS_E_TRANSFER', {
        message: `${root} is not a directory, so its files cannot be sent`,
        fault: 'source',
        mend: 'Check that the service and its volumes still exist.',
      });
    }
    this.#rootStats = rootStats;
    this.#mounts = mountsBelow(this.#base);
    for (const point of this.#mounts) this.snapshot.mountPoints.add(point);
    this.#since = options.since;
    this.#waiting.push({ path: '', parent: NONE, earlier: options.since === undefined ? NONE : 0 });
  }

  /** One entry; false when there is none left. */
  step(): boolean {
    const next = this.#waiting.pop();
    if (next === undefined) return false;
    const { path, parent, earlier } = next;
    const stats = path === '' ? this.#rootStats : this.#inspect(path);
    if (stats === undefined) return true;
    const isDirectory = stats.isDirectory();
    // Overlay gives files of different layers different device numbers, so only a directory's number shows a boundary.
    const isBoundary = isDirectory && stats.dev !== this.#rootStats.dev;
    if (path !== '' && (isBoundary || (this.#mounts.size > 0 && this.#mounts.has(`${this.#base}/${path}`)))) {
      this.snapshot.mounts.push(path);
      // The engine makes a missing file to mount on; an empty directory in its place keeps the shape of the tree.
      if (isDirectory) this.snapshot.add(path, stats, parent, earlier);
      return true;
    }
    const entry = this.snapshot.add(path, stats, parent, earlier);
    if (isDirectory) this.#enter(path, entry, earlier);
    return true;
  }

  #enter(path: BytePath, entry: number, earlier: number): void {
    const before = earlier === NONE ? undefined : this.#since;
    const children = before === undefined ? [] : [...before.children(earlier)].toReversed();
    if (before !== undefined && this.#isListedIn(before, entry)) {
      for (const child of children) this.#waiting.push({ path: before.pathAt(child), parent: entry, earlier: child });
      return;
    }
    const names = this.#view?.names(path) ?? list(this.#full(path));
    if (this.snapshot.count + this.#waiting.length + names.length > this.#limit) {
      throw tooMany(this.#root, this.#limit);
    }
    const known = new Map(children.map((child) => [nameOf(before?.pathAt(child) ?? ''), child]));
    for (const name of names) {
      this.#waiting.push({ path: join(path, name), parent: entry, earlier: known.get(name) ?? NONE });
    }
  }

  /** Whoever adds, removes or renames in a directory moves its times; a mount on an entry does not. */
  #isListedIn(before: Snapshot, entry: number): boolean {
    if (this.snapshot.isChangedSince(before, entry)) return false;
    const known = before.mountPoints;
    return this.#mounts.size === known.size && [...this.#mounts].every((point) => known.has(point));
  }

  #full(path: BytePath): BytePath {
    return path === '' ? this.#base : `${this.#base}/${path}`;
  }

  #inspect(path: BytePath): BigIntStats | undefined {
    return this.#view?.stats(path) ?? inspect(this.#full(path));
  }
}

function tooMany(root: string, limit: number): UmsError {
  return new UmsError('UMS_E_TRANSFER', {
    message: `${root} holds more than ${limit.toLocaleString('en')} files, which is more than ums moves`,
    fault: 'user',
    mend: 'Move the many files into a volume that both systems mount.',
  });
}

export function inspect(full: BytePath): BigIntStats | undefined {
  try {
    return lstatSync(toBytes(full), { bigint: true });
  } catch (error) {
    return ignoreVanished(error, full);
  }
}

/** Names in a directory in reverse byte order, so that a stack gives them back in byte order. */
export function list(full: BytePath): BytePath[] {
  try {
    const names = readdirSync(toBytes(full), { encoding: 'latin1' });
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
    const escaped = line.split(' ', 5)[4];
    if (escaped === undefined) continue;
    const point = escaped.replaceAll(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(parseInt(octal, 8)));
    if (point.startsWith(`${base}/`)) found.add(point);
  }
  return found;
}
