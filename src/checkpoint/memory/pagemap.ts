import { closeSync, constants, openSync, readSync } from 'node:fs';
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { PageRange } from '#src/transfer/pages/model.ts';
import { ifThere } from './proc.ts';

const ENTRY_BYTES = 8;
/** Pages whose entries are read at once: 64 MiB of memory, in about a millisecond. */
const CHUNK_PAGES = 16 * 1024;
const TURN_MS = 2;

/** Upper halves of entries (Documentation/admin-guide/mm/pagemap.rst). */
export const PRESENT = 0x8000_0000;
export const SWAPPED = 0x4000_0000;
export const GUARD = 0x0400_0000;
export const SOFT_DIRTY = 0x0080_0000;
const FRAME_HIGH = 0x007f_ffff;
/** Swap entries of this type are markers that the kernel leaves in empty places; no swap area has it. */
const MARKER_TYPE = 31;
const TYPE_MASK = 31;

/** Collects pages, in ascending order, into ranges. */
export class RangeCollector {
  readonly ranges: PageRange[] = [];
  pages = 0;
  #first = -1;
  #end = -1;

  add(page: number, count = 1): void {
    this.pages += count;
    if (page === this.#end) {
      this.#end += count;
      return;
    }
    this.#flush();
    this.#first = page;
    this.#end = page + count;
  }

  finish(): PageRange[] {
    this.#flush();
    this.#first = -1;
    this.#end = -1;
    return this.ranges;
  }

  #flush(): void {
    if (this.#end > this.#first) this.ranges.push({ first: this.#first, count: this.#end - this.#first });
  }
}

/** `entries` has two words a page, the lower first. Returning false ends the walk. */
export type Visit = (first: number, count: number, entries: Uint32Array) => void;

/** Reads the entries of these ranges; what vanishes meanwhile is left out. Synchronous parts stay around 2 ms. */
export async function walkPagemap(
  pid: number,
  ranges: readonly PageRange[],
  visit: Visit,
  signal?: AbortSignal,
): Promise<void> {
  const fd = ifThere(() => openSync(`/proc/${pid}/pagemap`, constants.O_RDONLY));
  if (fd === undefined) return;
  try {
    const entries = new Uint32Array(2 * CHUNK_PAGES);
    let turn = performance.now();
    for (const range of ranges) {
      for (let done = 0; done < range.count; ) {
        const count = readEntries(fd, range.first + done, Math.min(CHUNK_PAGES, range.count - done), entries);
        if (count === 0) break;
        visit(range.first + done, count, entries);
        done += count;
        if (performance.now() - turn < TURN_MS) continue;
        await nextTurn();
        signal?.throwIfAborted();
        turn = performance.now();
      }
    }
  } finally {
    closeSync(fd);
  }
}

function readEntries(fd: number, first: number, count: number, entries: Uint32Array): number {
  const bytes = ifThere(() => readSync(fd, entries, 0, count * ENTRY_BYTES, first * ENTRY_BYTES));
  return Math.floor((bytes ?? 0) / ENTRY_BYTES);
}

/** Whether a page holds something that a program can read. */
export function holdsContent(low: number, high: number): boolean {
  if ((high & PRESENT) !== 0) return true;
  return (high & SWAPPED) !== 0 && (high & GUARD) === 0 && (low & TYPE_MASK) !== MARKER_TYPE;
}

/** The page frame of a present page; 0 where the kernel does not tell. */
export function frameOf(low: number, high: number): number {
  return (high & FRAME_HIGH) * 2 ** 32 + low;
}

export async function presentPages(
  pid: number,
  ranges: readonly PageRange[],
  signal?: AbortSignal,
): Promise<PageRange[]> {
  const found = new RangeCollector();
  const visit: Visit = (first, count, entries) => {
    for (let page = 0; page < count; page += 1) {
      if (holdsContent(entries[2 * page] ?? 0, entries[2 * page + 1] ?? 0)) found.add(first + page);
    }
  };
  await walkPagemap(pid, ranges, visit, signal);
  return found.finish();
}
