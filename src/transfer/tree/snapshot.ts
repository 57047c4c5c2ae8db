import type { BigIntStats } from 'node:fs';
import type { BytePath } from './paths.ts';

/** Bits of st_mode that hold the type, and the types. */
const TYPE_MASK = 0o170000n;
export const TYPE = {
  fifo: 0o010000n,
  character: 0o020000n,
  directory: 0o040000n,
  block: 0o060000n,
  file: 0o100000n,
  symlink: 0o120000n,
  socket: 0o140000n,
} as const;

const COLUMNS = ['mode', 'uid', 'gid', 'size', 'blocks', 'mtimeNs', 'ctimeNs', 'ino', 'dev', 'nlink', 'rdev'] as const;
export type Column = (typeof COLUMNS)[number];
const STRIDE = COLUMNS.length;
const OFFSET: Record<Column, number> = {
  mode: 0,
  uid: 1,
  gid: 2,
  size: 3,
  blocks: 4,
  mtimeNs: 5,
  ctimeNs: 6,
  ino: 7,
  dev: 8,
  nlink: 9,
  rdev: 10,
};

/** What makes an entry different from the last time. `blocks` is left out: it moves without anyone writing. */
const COMPARED: readonly number[] = COLUMNS.flatMap((column) => (column === 'blocks' ? [] : [OFFSET[column]]));

/** Git's racy index: a clock tick of the file system and the clock's own distance from it fit into two seconds. */
const RACY_NS = 2_000_000_000n;

/** No entry, where a number of one is expected. */
export const NONE = -1;

/**
 * Everything that was in a tree when it was last walked, in the order of the walk (a directory, then all below it).
 *
 * Memory: 105 bytes in arrays outside of V8's heap and about 70 in the heap for a path of 60 bytes, which a later
 * snapshot shares, and 80 more once the index was asked for. So 1.3 GB at the limit of five million entries
 * (`ENTRY_LIMIT`), beyond which a walk is refused.
 */
export class Snapshot {
  readonly startedNs: bigint;
  readonly paths: BytePath[] = [];
  /** Mount points below the tree: what is mounted there is not part of it. */
  readonly mounts: BytePath[] = [];
  /** All mount points that the host had below the tree, as absolute paths. */
  readonly mountPoints = new Set<BytePath>();
  /** Entries that the pass after this walk did not carry, or not as the walk saw them: they go again next time. */
  readonly stale = new Set<number>();
  /** Names of the extended attributes that were sent, for directories that have some. */
  readonly attributes = new Map<BytePath, readonly string[]>();
  #before: Snapshot | undefined;
  #columns = new BigInt64Array(STRIDE * 256);
  #parents = new Int32Array(256);
  /** For each entry its number in `before` shifted by one bit, and in that bit whether it is the same as there. */
  #earlier = new Int32Array(256);
  #index: Map<BytePath, number> | undefined;
  #ends: Int32Array | undefined;

  constructor(startedNs: bigint, before?: Snapshot) {
    this.startedNs = startedNs;
    this.#before = before;
  }

  /** The snapshot that the walk compared with, until it is released. */
  get before(): Snapshot | undefined {
    return this.#before;
  }

  /** Lets go of the earlier snapshot, so that they do not pile up. */
  release(): void {
    this.#before = undefined;
  }

  get count(): number {
    return this.paths.length;
  }

  /** Paths to entries. Made when it is first asked for, as a pass over an unchanged tree does without. */
  get index(): ReadonlyMap<BytePath, number> {
    if (this.#index === undefined) {
      this.#index = new Map();
      for (let entry = 0; entry < this.count; entry += 1) this.#index.set(this.pathAt(entry), entry);
    }
    return this.#index;
  }

  /** `parent` is the entry of the directory that holds it; `earlier` its entry in `before`. */
  add(path: BytePath, stats: BigIntStats, parent = NONE, earlier = NONE): number {
    const entry = this.paths.length;
    if (entry >= this.#parents.length) this.#grow();
    this.paths.push(path);
    this.#index?.set(path, entry);
    this.#ends = undefined;
    this.#parents[entry] = parent;
    const columns = this.#columns;
    const at = entry * STRIDE;
    columns[at] = stats.mode;
    columns[at + 1] = stats.uid;
    columns[at + 2] = stats.gid;
    columns[at + 3] = stats.size;
    columns[at + 4] = stats.blocks;
    columns[at + 5] = stats.mtimeNs;
    columns[at + 6] = stats.ctimeNs;
    columns[at + 7] = stats.ino;
    columns[at + 8] = stats.dev;
    columns[at + 9] = stats.nlink;
    columns[at + 10] = stats.rdev;
    const isSame = this.#before !== undefined && earlier !== NONE && !this.differsFrom(this.#before, entry, earlier);
    this.#earlier[entry] = (earlier << 1) | (isSame ? 1 : 0);
    return entry;
  }

  #grow(): void {
    const size = this.#parents.length * 2;
    const columns = new BigInt64Array(size * STRIDE);
    columns.set(this.#columns);
    this.#columns = columns;
    const parents = new Int32Array(size);
    parents.set(this.#parents);
    this.#parents = parents;
    const earlier = new Int32Array(size);
    earlier.set(this.#earlier);
    this.#earlier = earlier;
  }

  pathAt(entry: number): BytePath {
    const path = this.paths[entry];
    if (path === undefined) throw new RangeError(`no entry ${entry} in a snapshot of ${this.count}`);
    return path;
  }

  get(entry: number, column: Column): bigint {
    return this.#columns[entry * STRIDE + OFFSET[column]] ?? 0n;
  }

  type(entry: number): bigint {
    return this.get(entry, 'mode') & TYPE_MASK;
  }

  /** The file behind an entry, as "dev:ino". */
  identity(entry: number): string {
    return `${BigInt.asUintN(64, this.get(entry, 'dev'))}:${BigInt.asUintN(64, this.get(entry, 'ino'))}`;
  }

  /** True for a file that has, or may have, another name. */
  isLinked(entry: number): boolean {
    return this.get(entry, 'nlink') > 1n && this.type(entry) !== TYPE.directory;
  }

  /** The entry of the same path in an earlier snapshot. */
  earlierIn(before: Snapshot, entry: number): number {
    if (this.#before === before) return (this.#earlier[entry] ?? NONE << 1) >> 1;
    return before.index.get(this.pathAt(entry)) ?? NONE;
  }

  /** True when this entry, as seen now, may differ from what a pass after `before` left at the other side. */
  isChangedSince(before: Snapshot, entry: number): boolean {
    if (this.#before === before) return ((this.#earlier[entry] ?? 0) & 1) === 0;
    const earlier = before.index.get(this.pathAt(entry));
    return earlier === undefined || this.differsFrom(before, entry, earlier);
  }

  differsFrom(before: Snapshot, entry: number, earlier: number): boolean {
    if (before.stale.size > 0 && before.stale.has(earlier)) return true;
    if (before.get(earlier, 'ctimeNs') >= before.startedNs - RACY_NS) return true;
    const [mine, theirs] = [this.#columns, before.#columns];
    const [at, there] = [entry * STRIDE, earlier * STRIDE];
    for (const offset of COMPARED) if (mine[at + offset] !== theirs[there + offset]) return true;
    return false;
  }

  /** The entries directly in a directory, in byte order. Only of a walk that told the parents. */
  *children(directory: number): Generator<number, void, undefined> {
    this.#ends ??= this.#subtreeEnds();
    const end = this.#ends[directory] ?? directory + 1;
    for (let child = directory + 1; child < end; child = this.#ends[child] ?? end) yield child;
  }

  /** For each entry the one after the last that lies below it. */
  #subtreeEnds(): Int32Array {
    const ends = new Int32Array(this.count);
    for (let entry = this.count - 1; entry >= 0; entry -= 1) {
      ends[entry] = Math.max(ends[entry] ?? 0, entry + 1);
      const parent = this.#parents[entry] ?? NONE;
      if (parent !== NONE) ends[parent] = Math.max(ends[parent] ?? 0, ends[entry] ?? 0);
    }
    return ends;
  }
}
