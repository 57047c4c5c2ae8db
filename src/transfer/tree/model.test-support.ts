import type { BigIntStats } from 'node:fs';
import { type BytePath, parentOf } from './paths.ts';
import type { PassPlan } from './plan.ts';
import { Snapshot, TYPE } from './snapshot.ts';

/** A file system in memory with the times and link counts of a real one: what the plan of a pass is tested against. */
interface Inode {
  ino: bigint;
  type: bigint;
  content: number;
  mtimeNs: bigint;
  ctimeNs: bigint;
}

export interface Operation {
  kind: 'file' | 'directory' | 'socket' | 'write' | 'touch' | 'remove' | 'link' | 'rename' | 'sneak';
  a: BytePath;
  b: BytePath;
}

/** Ten seconds: more than what counts as racily recent. */
const TICK_NS = 10_000_000_000n;

export class ModelTree {
  readonly names = new Map<BytePath, Inode>();
  #clock = TICK_NS;
  #nextInode = 1n;

  constructor() {
    this.#make('', TYPE.directory);
  }

  /** Does what can be done; an operation that a kernel would refuse is left out. */
  apply({ kind, a, b }: Operation): void {
    this.#clock += TICK_NS;
    const inode = this.names.get(a);
    if (kind === 'file' || kind === 'directory' || kind === 'socket') {
      if (inode === undefined && this.#isDirectory(parentOf(a))) this.#make(a, TYPE[kind]);
    } else if (inode === undefined || a === '') {
      return;
    } else if (kind === 'write' || kind === 'sneak') {
      if (inode.type !== TYPE.file) return;
      inode.content += 1;
      if (kind === 'write') inode.mtimeNs = inode.ctimeNs = this.#clock;
    } else if (kind === 'touch') {
      inode.ctimeNs = this.#clock;
    } else if (kind === 'remove') {
      this.#remove(a);
    } else if (this.names.has(b) || b.startsWith(`${a}/`) || !this.#isDirectory(parentOf(b))) {
      return;
    } else if (kind === 'link') {
      if (inode.type === TYPE.directory) return;
      inode.ctimeNs = this.#clock;
      this.names.set(b, inode);
      this.#touchDirectory(parentOf(b));
    } else {
      this.#rename(a, b, inode);
    }
  }

  identity(path: BytePath): string {
    return `1:${this.names.get(path)?.ino ?? 0n}`;
  }

  snapshot(): Snapshot {
    this.#clock += TICK_NS;
    const snapshot = new Snapshot(this.#clock);
    const links = new Map<bigint, bigint>();
    for (const inode of this.names.values()) links.set(inode.ino, (links.get(inode.ino) ?? 0n) + 1n);
    for (const path of this.#walk()) {
      const inode = this.names.get(path);
      if (inode !== undefined) snapshot.add(path, stats(inode, links.get(inode.ino) ?? 1n));
    }
    this.#clock += TICK_NS;
    return snapshot;
  }

  #walk(): BytePath[] {
    const found: BytePath[] = [];
    const visit = (path: BytePath): void => {
      found.push(path);
      const children = [...this.names.keys()].filter((name) => name !== '' && parentOf(name) === path).sort();
      for (const child of children) visit(child);
    };
    visit('');
    return found;
  }

  #make(path: BytePath, type: bigint): void {
    this.names.set(path, { ino: this.#nextInode, type, content: 0, mtimeNs: this.#clock, ctimeNs: this.#clock });
    this.#nextInode += 1n;
    if (path !== '') this.#touchDirectory(parentOf(path));
  }

  #isDirectory(path: BytePath): boolean {
    return this.names.get(path)?.type === TYPE.directory;
  }

  #touchDirectory(path: BytePath): void {
    const inode = this.names.get(path);
    if (inode !== undefined) inode.mtimeNs = inode.ctimeNs = this.#clock;
  }

  #remove(path: BytePath): void {
    for (const [name, inode] of this.names) {
      if (name !== path && !name.startsWith(`${path}/`)) continue;
      inode.ctimeNs = this.#clock;
      this.names.delete(name);
    }
    this.#touchDirectory(parentOf(path));
  }

  #rename(from: BytePath, to: BytePath, inode: Inode): void {
    for (const [name, moved] of this.names) {
      if (name !== from && !name.startsWith(`${from}/`)) continue;
      this.names.delete(name);
      this.names.set(to + name.slice(from.length), moved);
    }
    // Only the renamed inode's own time moves, not those below it.
    inode.ctimeNs = this.#clock;
    this.#touchDirectory(parentOf(from));
    this.#touchDirectory(parentOf(to));
  }
}

function stats(inode: Inode, nlink: bigint): BigIntStats {
  const rest = { uid: 0n, gid: 0n, size: 1n, blocks: 8n, dev: 1n, rdev: 0n, blksize: 4096n };
  const times = { atimeNs: 0n, atimeMs: 0n, mtimeMs: 0n, ctimeMs: 0n, birthtimeMs: 0n, birthtimeNs: 0n };
  const date = new Date(0);
  const dates = { atime: date, mtime: date, ctime: date, birthtime: date };
  const is = (type: bigint) => (): boolean => inode.type === type;
  return {
    ...rest,
    ...times,
    ...dates,
    mode: inode.type | 0o644n,
    ino: inode.ino,
    nlink,
    mtimeNs: inode.mtimeNs,
    ctimeNs: inode.ctimeNs,
    isFile: is(TYPE.file),
    isDirectory: is(TYPE.directory),
    isSocket: is(TYPE.socket),
    isSymbolicLink: is(TYPE.symlink),
    isFIFO: is(TYPE.fifo),
    isBlockDevice: is(TYPE.block),
    isCharacterDevice: is(TYPE.character),
  };
}

interface Copy {
  type: bigint;
  content: number;
  /** Names that are links of each other share it. */
  group: string;
}

/** The other side: applies plans as the receiver does, and refuses what would go wrong there. */
export class ModelCopy {
  readonly names = new Map<BytePath, Copy>();
  #pass = 0;

  apply(plan: PassPlan, snapshot: Snapshot, tree: ModelTree): void {
    this.#pass += 1;
    const moved = new Set<BytePath>();
    if (plan.full) this.names.clear();
    for (const deletion of plan.deletions) {
      for (const name of this.names.keys()) {
        if (name === deletion || name.startsWith(`${deletion}/`)) this.names.delete(name);
      }
      moved.add(parentOf(deletion));
    }
    const timed = new Set<BytePath>();
    for (const entry of [...plan.sockets, ...plan.send]) {
      const path = snapshot.pathAt(entry);
      const inode = tree.names.get(path);
      if (inode === undefined) throw new Error(`${path} is planned but not there`);
      const there = this.names.get(path);
      if (there !== undefined && there.type !== inode.type) throw new Error(`${path} has another type there`);
      this.names.set(path, { type: inode.type, content: inode.content, group: `${this.#pass}:${inode.ino}` });
      if (inode.type === TYPE.directory) timed.add(path);
      else moved.add(parentOf(path));
    }
    for (const path of moved) if (!timed.has(path)) throw new Error(`the time of "${path}" is wrong`);
  }

  describe(): string[] {
    return describe(this.names, (copy) => copy.group);
  }
}

export function describeTree(tree: ModelTree): string[] {
  return describe(tree.names, (inode) => String(inode.ino));
}

function describe<T extends { type: bigint; content: number }>(
  names: ReadonlyMap<BytePath, T>,
  groupOf: (node: T) => string,
): string[] {
  const members = new Map<string, BytePath[]>();
  for (const [path, node] of names) {
    if (node.type === TYPE.directory) continue;
    const group = groupOf(node);
    members.set(group, [...(members.get(group) ?? []), path]);
  }
  const lines = [...names].map(([path, node]) => {
    const links = node.type === TYPE.directory ? [] : (members.get(groupOf(node)) ?? []);
    return `${path} ${node.type} ${node.content} [${links.sort().join(' ')}]`;
  });
  return lines.sort();
}
