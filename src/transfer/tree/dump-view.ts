import type { BigIntStats } from 'node:fs';
import { type BytePath, fromText, nameOf, parentOf } from './paths.ts';
import { inspect, list } from './scan.ts';
import { NONE, Snapshot } from './snapshot.ts';

/**
 * While CRIU dumps it makes a directory `cr-tmpfs.XXXXXX` in the service's /tmp (or its root) for a moment, which also
 * moves the times of what it is made in. So that the last pass may run beside the dump, the directories where that can
 * happen are looked at before the dump begins: the service is frozen by then, so what is seen there is what the service
 * left, and whatever appears later is not of the service.
 */
export class DumpView {
  readonly #seen = new Map<BytePath, { stats: BigIntStats; names: readonly BytePath[] | undefined }>();

  /** `temporary` are places where CRIU makes directories, as paths in the container: /tmp, and where it leads to. */
  constructor(root: string, temporary: readonly string[], since: Snapshot | undefined) {
    const base = fromText(root);
    for (const path of candidates(temporary)) {
      const full = path === '' ? base : `${base}/${path}`;
      const stats = inspect(full);
      if (stats?.isDirectory() !== true) continue;
      this.#seen.set(path, { stats, names: isAsBefore(path, stats, since) ? undefined : list(full) });
    }
  }

  /** What lstat said of a directory that CRIU may alter. */
  stats(path: BytePath): BigIntStats | undefined {
    return this.#seen.get(path)?.stats;
  }

  /** The names that were in it, in reverse byte order; undefined where the walk before has them. */
  names(path: BytePath): readonly BytePath[] | undefined {
    return this.#seen.get(path)?.names;
  }
}

/**
 * A tree may be mounted anywhere in the container, so for /a/b the places in it are a/b, a, b and its own directory. The
 * directories above matter because an overlay copies them up when something is made below them.
 */
function candidates(temporary: readonly string[]): Set<BytePath> {
  const found = new Set<BytePath>(['']);
  for (const path of ['/tmp', ...temporary]) {
    const parts = fromText(path)
      .split('/')
      .filter((part) => part !== '');
    for (let from = 0; from < parts.length; from += 1) {
      for (let place = parts.slice(from).join('/'); place !== ''; place = parentOf(place)) found.add(place);
    }
  }
  return found;
}

function isAsBefore(path: BytePath, stats: BigIntStats, since: Snapshot | undefined): boolean {
  if (since === undefined || since.count === 0) return false;
  let earlier = 0;
  for (const part of path === '' ? [] : path.split('/')) {
    earlier = [...since.children(earlier)].find((child) => nameOf(since.pathAt(child)) === part) ?? NONE;
    if (earlier === NONE) return false;
  }
  const one = new Snapshot(0n, since);
  return !one.isChangedSince(since, one.add(path, stats, NONE, earlier));
}
