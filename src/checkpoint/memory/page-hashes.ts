import type { PageRange } from '#src/transfer/pages/model.ts';

/** Pages of one block: the hashes of 2 MiB of memory, as many as one page table has entries. */
const BLOCK_PAGES = 512;
const NONE = 0n;

/** One 64-bit hash for every page seen: 8 bytes a page, and nothing for what lies between mappings. */
export class PageHashes {
  readonly #blocks = new Map<number, BigUint64Array>();
  #recent: BigUint64Array | undefined;
  #recentIndex = -1;

  /** Remembers the page's hash; whether it was another, or none. */
  put(page: number, hash: bigint): boolean {
    const kept = hash === NONE ? 1n : hash;
    const block = this.#block(Math.floor(page / BLOCK_PAGES));
    const at = page % BLOCK_PAGES;
    if (block[at] === kept) return false;
    block[at] = kept;
    return true;
  }

  has(page: number): boolean {
    return (this.#blocks.get(Math.floor(page / BLOCK_PAGES))?.[page % BLOCK_PAGES] ?? NONE) !== NONE;
  }

  forget(ranges: readonly PageRange[]): void {
    for (const range of ranges) {
      const end = range.first + range.count;
      for (let page = range.first; page < end; ) {
        const index = Math.floor(page / BLOCK_PAGES);
        const next = Math.min(end, (index + 1) * BLOCK_PAGES);
        this.#forgetIn(index, page - index * BLOCK_PAGES, next - index * BLOCK_PAGES);
        page = next;
      }
    }
  }

  #forgetIn(index: number, from: number, to: number): void {
    if (to - from < BLOCK_PAGES) {
      this.#blocks.get(index)?.fill(NONE, from, to);
      return;
    }
    this.#blocks.delete(index);
    if (this.#recentIndex === index) this.#recentIndex = -1;
  }

  #block(index: number): BigUint64Array {
    if (this.#recentIndex === index && this.#recent !== undefined) return this.#recent;
    let block = this.#blocks.get(index);
    if (block === undefined) {
      block = new BigUint64Array(BLOCK_PAGES);
      this.#blocks.set(index, block);
    }
    this.#recent = block;
    this.#recentIndex = index;
    return block;
  }
}
