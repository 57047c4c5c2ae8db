import { writeFileSync } from 'node:fs';
import { intersectRanges, normaliseRanges, type PageRange, subtractRanges } from '#src/transfer/pages/model.ts';
import { mappingsNow } from './mappings.ts';
import type { DirtyTracker, FinalPages, RoundPages } from './model.ts';
import { frameOf, holdsContent, PRESENT, RangeCollector, SOFT_DIRTY, walkPagemap } from './pagemap.ts';
import { ifThere } from './proc.ts';
import { ProcessMemory } from './process-memory.ts';
import { mayBeWrittenUnseen } from './unseen-writes.ts';
import type { ZeroFrames } from './zero-frames.ts';

interface Tracked {
  readonly memory: ProcessMemory;
  known: PageRange[];
  unseen: boolean;
}

interface Seen {
  readonly dirty: PageRange[];
  readonly present: PageRange[];
  readonly present_pages: number;
  readonly elapsed_ms: number;
}

export interface Pausing {
  readonly pause: () => Promise<void>;
  readonly unpause: () => Promise<void>;
}

/**
 * The kernel's soft-dirty bits, by the same interface that CRIU's pre-dump uses, but without CRIU. Bits are read and then
 * cleared, which is not one step: in between the service stands still (some 20 ms for each GiB), so that no write falls
 * into the gap.
 */
export class SoftDirtyTracker implements DirtyTracker {
  readonly kind = 'soft-dirty';
  readonly fallback: string | undefined;
  readonly #zeros: ZeroFrames;
  readonly #pausing: Pausing;
  readonly #tracked = new Map<number, Tracked>();

  constructor(zeros: ZeroFrames, pausing: Pausing, fallback?: string) {
    this.#zeros = zeros;
    this.#pausing = pausing;
    this.fallback = fallback;
  }

  async round(pids: readonly number[], signal: AbortSignal): Promise<Map<number, RoundPages>> {
    for (const pid of this.#tracked.keys()) if (!pids.includes(pid)) this.#drop(pid);
    try {
      return await this.#roundOf(new Set(pids), signal);
    } catch (error) {
      // Bits were cleared of pages that nobody will be told of.
      for (const pid of this.#tracked.keys()) this.#drop(pid);
      throw error;
    }
  }

  async final(pids: readonly number[]): Promise<Map<number, FinalPages>> {
    const found = new Map<number, FinalPages>();
    for (const pid of new Set(pids)) {
      const tracked = this.#tracked.get(pid);
      const { dirty, present } = await this.#read(pid);
      const known = tracked?.memory.exists() === true ? tracked.known : [];
      const rest = subtractRanges(intersectRanges(present, known), dirty);
      const proof = tracked?.unseen === true ? 'confirm' : 'unchanged';
      if (mappingsNow(pid).length > 0) found.set(pid, { changed: subtractRanges(present, rest), rest, proof });
    }
    return found;
  }

  async close(): Promise<void> {
    for (const pid of this.#tracked.keys()) this.#drop(pid);
    await this.#zeros.end();
  }

  async #roundOf(pids: ReadonlySet<number>, signal: AbortSignal): Promise<Map<number, RoundPages>> {
    const found = new Map<number, RoundPages>();
    const known: [number, Tracked][] = [];
    for (const pid of pids) {
      signal.throwIfAborted();
      const tracked = await this.#track(pid);
      if (tracked === undefined) continue;
      // Nothing can be lost of a process of which nothing is known yet: what is written after the clearing is dirty again.
      if (tracked.known.length === 0) this.#report(pid, tracked, await this.#clearAndRead(pid), found);
      else known.push([pid, tracked]);
    }
    if (known.length > 0) await this.#readAndClear(known, found);
    for (const [pid, tracked] of known) tracked.unseen ||= await mayBeWrittenUnseen(pid);
    return found;
  }

  #report(pid: number, tracked: Tracked, pages: Seen, found: Map<number, RoundPages>): void {
    if (!tracked.memory.exists()) return;
    const { dirty, present, present_pages, elapsed_ms } = pages;
    const changed = normaliseRanges([...dirty, ...subtractRanges(present, tracked.known)]);
    const gone = subtractRanges(tracked.known, present);
    tracked.known = present;
    found.set(pid, { changed, gone, present_pages, elapsed_ms });
  }

  async #clearAndRead(pid: number): Promise<Seen> {
    clearBits(pid);
    return this.#read(pid);
  }

  /** Not to be interrupted: bits that were cleared and not reported would be lost. */
  async #readAndClear(processes: readonly [number, Tracked][], found: Map<number, RoundPages>): Promise<void> {
    await this.#pausing.pause();
    try {
      for (const [pid, tracked] of processes) {
        const seen = await this.#read(pid);
        clearBits(pid);
        this.#report(pid, tracked, seen, found);
      }
    } finally {
      await this.#pausing.unpause();
    }
  }

  async #read(pid: number): Promise<Seen> {
    const started = performance.now();
    const dirty = new RangeCollector();
    const present = new RangeCollector();
    const lazy = normaliseRanges(mappingsNow(pid).filter((mapping) => mapping.lazy));
    await walkPagemap(pid, lazy, (first, count, entries) => {
      for (let page = 0; page < count; page += 1) {
        const low = entries[2 * page] ?? 0;
        const high = entries[2 * page + 1] ?? 0;
        if (!holdsContent(low, high)) continue;
        if ((high & PRESENT) !== 0 && this.#zeros.has(frameOf(low, high))) continue;
        present.add(first + page);
        if ((high & SOFT_DIRTY) !== 0) dirty.add(first + page);
      }
    });
    return {
      dirty: dirty.finish(),
      present: present.finish(),
      present_pages: present.pages,
      elapsed_ms: performance.now() - started,
    };
  }

  async #track(pid: number): Promise<Tracked | undefined> {
    const before = this.#tracked.get(pid);
    if (before?.memory.exists() === true) return before;
    this.#drop(pid);
    const memory = await ProcessMemory.openLiving(pid);
    if (memory === undefined) return undefined;
    const tracked: Tracked = { memory, known: [], unseen: false };
    this.#tracked.set(pid, tracked);
    return tracked;
  }

  #drop(pid: number): void {
    this.#tracked.get(pid)?.memory.close();
    this.#tracked.delete(pid);
  }
}

function clearBits(pid: number): void {
  ifThere(() => writeFileSync(`/proc/${pid}/clear_refs`, '4', { flag: 'w' }));
}
