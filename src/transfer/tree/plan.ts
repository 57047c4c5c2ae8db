import { LARGE_BYTES } from './blocks.ts';
import { type BytePath, parentOf } from './paths.ts';
import { NONE, type Snapshot, TYPE } from './snapshot.ts';

/** What one pass carries. Numbers are entries of the new snapshot, in its order. */
export interface PassPlan {
  /** The other side empties its directory first. */
  full: boolean;
  /** For tar: everything but sockets. */
  send: number[];
  sockets: number[];
  /** Files of which the other side gets what is different. */
  patches: number[];
  /** Removed at the other side before anything is written; none lies below another. */
  deletions: BytePath[];
}

/**
 * Decides what a pass carries so that the other side, which holds `before`, comes to hold `now`.
 * `rebuilt` names directories that must be made anew there (an extended attribute went away, which tar cannot say).
 */
export function planPass(
  now: Snapshot,
  before: Snapshot | undefined,
  alwaysDirty: ReadonlySet<string>,
  rebuilt: ReadonlySet<BytePath>,
  canPatch: (path: BytePath) => boolean = () => false,
): PassPlan {
  const patches: number[] = [];
  const marked = new Uint8Array(now.count).fill(before === undefined ? 1 : 0);
  const deletions: BytePath[] = [];
  if (before !== undefined) {
    markChanged(now, before, alwaysDirty, marked);
    takePatches(now, before, canPatch, marked, patches);
    markBelow(now, rebuilt, marked);
    markLinks(now, marked);
    deletions.push(...deletionsSince(now, before, rebuilt));
    markParents(now, deletions, marked);
  }
  const send: number[] = [];
  const sockets: number[] = [];
  for (let entry = 0; entry < now.count; entry += 1) {
    if (marked[entry] === 1) (now.type(entry) === TYPE.socket ? sockets : send).push(entry);
  }
  return {
    full: before === undefined,
    send,
    sockets,
    patches: patches.filter((entry) => marked[entry] === 0),
    deletions,
  };
}

/** Directories that were sent with extended attributes and may have lost one since. */
export function attributeSuspects(now: Snapshot, before: Snapshot): BytePath[] {
  const suspects: BytePath[] = [];
  for (const path of before.attributes.keys()) {
    const entry = now.index.get(path);
    if (entry === undefined || !before.index.has(path) || now.type(entry) !== TYPE.directory) continue;
    if (now.isChangedSince(before, entry)) suspects.push(path);
  }
  return suspects;
}

function markChanged(now: Snapshot, before: Snapshot, alwaysDirty: ReadonlySet<string>, marked: Uint8Array): void {
  // Numbers first: making the text of an identity for each of a million entries would take a second.
  const inodes = new Set([...alwaysDirty].map((identity) => BigInt.asIntN(64, BigInt(identity.split(':')[1] ?? 0))));
  const isDirty = (entry: number): boolean => inodes.has(now.get(entry, 'ino')) && alwaysDirty.has(now.identity(entry));
  for (let entry = 0; entry < now.count; entry += 1) {
    if (now.isChangedSince(before, entry) || (inodes.size > 0 && isDirty(entry))) marked[entry] = 1;
  }
}

/**
 * Files that are the same file as before under the same, only name: their content may be sent in parts. They are no
 * longer marked, as nothing else of their directory changes.
 */
function takePatches(
  now: Snapshot,
  before: Snapshot,
  canPatch: (path: BytePath) => boolean,
  marked: Uint8Array,
  patches: number[],
): void {
  for (let entry = 0; entry < now.count; entry += 1) {
    if (marked[entry] !== 1 || now.get(entry, 'size') < LARGE_BYTES || !canPatch(now.pathAt(entry))) continue;
    const earlier = now.earlierIn(before, entry);
    if (earlier === NONE || now.type(entry) !== TYPE.file || before.type(earlier) !== TYPE.file) continue;
    const isOne = now.get(entry, 'nlink') === 1n && before.get(earlier, 'nlink') === 1n;
    if (!isOne || now.identity(entry) !== before.identity(earlier) || isMostlyHoles(now, entry)) continue;
    patches.push(entry);
    marked[entry] = 0;
  }
}

/** tar skips holes; comparing would read them all, which for so many takes longer than sending the rest. */
const HOLES_BYTES = 512n * 1024n * 1024n;

function isMostlyHoles(now: Snapshot, entry: number): boolean {
  return now.get(entry, 'size') > 2n * 512n * now.get(entry, 'blocks') + HOLES_BYTES;
}

function markBelow(now: Snapshot, rebuilt: ReadonlySet<BytePath>, marked: Uint8Array): void {
  if (rebuilt.size === 0) return;
  let inside: BytePath | undefined;
  for (let entry = 0; entry < now.count; entry += 1) {
    const path = now.pathAt(entry);
    if (inside === undefined || !path.startsWith(`${inside}/`)) inside = rebuilt.has(path) ? path : undefined;
    if (inside !== undefined) marked[entry] = 1;
  }
}

/** Links stay links only when tar sees all names of a file, so when one goes, all go. */
function markLinks(now: Snapshot, marked: Uint8Array): void {
  const groups = new Set<string>();
  for (let entry = 0; entry < now.count; entry += 1) {
    if (marked[entry] === 1 && now.isLinked(entry)) groups.add(now.identity(entry));
  }
  if (groups.size === 0) return;
  for (let entry = 0; entry < now.count; entry += 1) {
    if (now.isLinked(entry) && groups.has(now.identity(entry))) marked[entry] = 1;
  }
}

/** Whatever is written into or removed from a directory moves its time there, so its own entry goes along. */
function markParents(now: Snapshot, deletions: readonly BytePath[], marked: Uint8Array): void {
  const mark = (path: BytePath): void => {
    const parent = now.index.get(parentOf(path));
    // 2, so that a directory that goes only because of its content does not in turn pull its own parent in.
    if (parent !== undefined && marked[parent] === 0) marked[parent] = 2;
  };
  for (let entry = 1; entry < now.count; entry += 1) if (marked[entry] === 1) mark(now.pathAt(entry));
  for (const path of deletions) mark(path);
  for (let entry = 0; entry < now.count; entry += 1) if (marked[entry] === 2) marked[entry] = 1;
}

/** The topmost paths that are gone or became another type; the walk's order puts what is below them right after. */
function deletionsSince(now: Snapshot, before: Snapshot, rebuilt: ReadonlySet<BytePath>): BytePath[] {
  const later = new Int32Array(before.count).fill(NONE);
  for (let entry = 0; entry < now.count; entry += 1) {
    const earlier = now.earlierIn(before, entry);
    if (earlier !== NONE) later[earlier] = entry;
  }
  const deletions: BytePath[] = [];
  let covered: BytePath | undefined;
  for (let earlier = 1; earlier < before.count; earlier += 1) {
    const entry = later[earlier] ?? NONE;
    const isSameType = entry !== NONE && now.type(entry) === before.type(earlier);
    if (isSameType && rebuilt.size === 0 && covered === undefined) continue;
    const path = before.pathAt(earlier);
    if (covered !== undefined && path.startsWith(`${covered}/`)) continue;
    covered = undefined;
    if (isSameType && !rebuilt.has(path)) continue;
    deletions.push(path);
    covered = path;
  }
  return deletions;
}
