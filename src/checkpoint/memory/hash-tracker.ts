import { setImmediate as nextTurn } from 'node:timers/promises';
import {
  intersectRanges,
  normaliseRanges,
  PAGE_BYTES,
  type PageRange,
  subtractRanges,
} from '#src/transfer/pages/model.ts';
import xxhash from 'xxhash-wasm';
import { mappingsNow } from './mappings.ts';
import type { DirtyTracker, FinalPages, RoundPages } from './model.ts';
import { PageHashes } from './page-hashes.ts';
import { presentPages, RangeCollector } from './pagemap.ts';
import { ProcessMemory } from './process-memory.ts';

/** Read at once; reading and hashing it takes about half a millisecond. */
const CHUNK_PAGES = 256;
const TURN_MS = 2;

type HashPage = (page: Uint8Array) => bigint;

/** What is known of one process by the hashes of its pages. */
export class HashedProcess {
  readonly #memory: ProcessMemory;
  readonly #hash: HashPage;
  #hashes = new PageHashes();
  #known: PageRange[] = [];
  /** Changed between the last two rounds: likely to be changing still. */
  #hot: PageRange[] = [];

  private constructor(memory: ProcessMemory, hash: HashPage) {
    this.#memory = memory;
    this.#hash = hash;
  }

  static async open(pid: number): Promise<HashedProcess> {
    const hashes = await xxhash();
    return new HashedProcess(await ProcessMemory.open(pid), (page) => hashes.h64Raw(page));
  }

  exists(): boolean {
    return this.#memory.exists();
  }

  close(): void {
    this.#memory.close();
  }

  async round(signal: AbortSignal): Promise<RoundPages> {
    const started = performance.now();
    const present = await presentPages(this.#memory.pid, lazyRanges(this.#memory.pid), signal);
    const { changed, seen } = await this.#compare(present, signal).catch((error: unknown) => {
      // Some hashes are already those of pages that nobody will be told of.
      this.#hashes = new PageHashes();
      this.#known = [];
      throw error;
    });
    const gone = subtractRanges(this.#known, seen.ranges);
    this.#hashes.forget(gone);
    this.#hot = intersectRanges(changed, this.#known);
    this.#known = seen.ranges;
    return { changed, gone, present_pages: seen.pages, elapsed_ms: performance.now() - started };
  }

  /**
   * Nothing is read here: `rest` is compared by digest anyway. Pages that were never hashed, and those that lately
   * changed, are called changed, which spares them that comparison.
   */
  async final(): Promise<FinalPages> {
    const present = await presentPages(this.#memory.pid, lazyRanges(this.#memory.pid));
    const rest = subtractRanges(intersectRanges(present, this.#known), this.#hot);
    return { changed: subtractRanges(present, rest), rest, proof: 'confirm' };
  }

  async #compare(
    present: readonly PageRange[],
    signal: AbortSignal,
  ): Promise<{ changed: PageRange[]; seen: RangeCollector }> {
    const changed = new RangeCollector();
    const seen = new RangeCollector();
    const chunk = Buffer.allocUnsafeSlow(CHUNK_PAGES * PAGE_BYTES);
    const views = Array.from({ length: CHUNK_PAGES }, (_, page) =>
      chunk.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES),
    );
    let turn = performance.now();
    for (const range of present) {
      for (let done = 0; done < range.count; ) {
        const wanted = Math.min(CHUNK_PAGES, range.count - done);
        const first = range.first + done;
        const got = this.#memory.read(first, wanted, chunk);
        for (let page = 0; page < got; page += 1) {
          const view = views[page];
          if (view !== undefined && this.#hashes.put(first + page, this.#hash(view))) changed.add(first + page);
        }
        if (got > 0) seen.add(first, got);
        // A page that cannot be read is stepped over. It is not known then, so that it counts as changed at the end.
        done += Math.max(1, got);
        if (performance.now() - turn < TURN_MS) continue;
        await nextTurn();
        signal.throwIfAborted();
        turn = performance.now();
      }
    }
    seen.finish();
    return { changed: changed.finish(), seen };
  }
}

/**
 * Works on every kernel and asks nothing of the program: reads all memory each round and compares 64-bit hashes. It
 * costs a quarter of a second of a processor for each GiB, and two different contents may have the same hash, so at the
 * end everything is to be confirmed by a strong digest.
 */
export class HashTracker implements DirtyTracker {
  readonly kind = 'hash';
  readonly fallback: string | undefined;
  readonly #processes = new Map<number, HashedProcess>();

  constructor(fallback?: string) {
    this.fallback = fallback;
  }

  async round(pids: readonly number[], signal: AbortSignal): Promise<Map<number, RoundPages>> {
    const found = new Map<number, RoundPages>();
    this.#closeAllBut(pids);
    for (const pid of pids) {
      signal.throwIfAborted();
      const process = await this.#process(pid);
      const pages = await process?.round(signal);
      if (process !== undefined && pages !== undefined && process.exists()) found.set(pid, pages);
    }
    return found;
  }

  async final(pids: readonly number[]): Promise<Map<number, FinalPages>> {
    const found = new Map<number, FinalPages>();
    for (const pid of pids) {
      const process = await this.#process(pid);
      if (process !== undefined) found.set(pid, await process.final());
    }
    await this.close();
    return found;
  }

  async close(): Promise<void> {
    this.#closeAllBut([]);
  }

  async #process(pid: number): Promise<HashedProcess | undefined> {
    const known = this.#processes.get(pid);
    if (known?.exists() === true) return known;
    known?.close();
    this.#processes.delete(pid);
    const opened = await HashedProcess.open(pid);
    if (opened.exists()) {
      this.#processes.set(pid, opened);
      return opened;
    }
    opened.close();
    return undefined;
  }

  #closeAllBut(pids: readonly number[]): void {
    for (const [pid, process] of this.#processes) {
      if (pids.includes(pid)) continue;
      process.close();
      this.#processes.delete(pid);
    }
  }
}

function lazyRanges(pid: number): PageRange[] {
  return normaliseRanges(mappingsNow(pid).filter((mapping) => mapping.lazy));
}
