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
const COMPARED: readonly Column[] = ['mode', 'uid', 'gid', 'size', 'mtimeNs', 'ctimeNs', 'ino', 'dev', 'nlink', 'rdev'];

/** Git's racy index: a clock tick of the file system and the clock's own distance from it fit into two seconds. */
const RACY_NS = 2_000_000_000n;

/**
 * Everything that was in a tree when it was last walked, in the order of the walk (a directory, then all below it).
 *
 * Memory: 88 bytes in one array outside of V8's heap and about 150 in the heap for a path of 60 bytes and its place in
 * the index, so 1.2 GB at the limit of five million entries (`ENTRY_LIMIT`), beyond which a walk is refused.
 */
export class Snapshot {
  readonly startedNs: bigint;
  readonly paths: BytePath[] = [];
  readonly index = new Map<BytePath, number>();
  /** Mount points below the tree: what is mounted there is not part of it. */
  readonly mounts: BytePath[] = [];
  /** Entries that the pass after this walk did not carry, or not as the walk saw them: they go again next time. */
  readonly stale = new Set<number>();
  /** Names of the extended attributes that were sent, for directories that have some. */
  readonly attributes = new Map<BytePath, readonly string[]>();
  #columns = new BigInt64Array(STRIDE * 256);

  constructor(startedNs: bigint) {
    this.startedNs = startedNs;
  }

  get count(): number {
    return this.paths.length;
  }

  add(path: BytePath, stats: BigIntStats): number {
    const entry = this.paths.length;
    if ((entry + 1) * STRIDE > this.#columns.length) {
      const larger = new BigInt64Array(this.#columns.length * 2);
      larger.set(this.#columns);
      this.#columns = larger;
    }
    this.paths.push(path);
    this.index.set(path, entry);
    const { mode, uid, gid, size, blocks, mtimeNs, ctimeNs, ino, dev, nlink, rdev } = stats;
    this.#columns.set([mode, uid, gid, size, blocks, mtimeNs, ctimeNs, ino, dev, nlink, rdev], entry * STRIDE);
    return entry;
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
    return this.type(entry) !== TYPE.directory && this.get(entry, 'nlink') > 1n;
  }

  /** True when this entry, as seen now, may differ from what a pass after `before` left at the other side. */
  differsFrom(before: Snapshot, entry: number, earlier: number): boolean {
    if (before.stale.has(earlier)) return true;
    if (before.get(earlier, 'ctimeNs') >= before.startedNs - RACY_NS) return true;
    return COMPARED.some((column) => this.get(entry, column) !== before.get(earlier, column));
  }
}
