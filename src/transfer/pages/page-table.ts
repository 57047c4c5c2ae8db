export const CHUNK_PAGES = 4096;

/** One byte for each page of a space, in chunks: address spaces are large and mostly empty. */
export class PageBytes {
  readonly #chunks = new Map<number, Uint8Array>();
  get(page: number): number {
    const index = Math.floor(page / CHUNK_PAGES);
    const chunk = this.#chunks.get(index);
    return chunk?.[page % CHUNK_PAGES] ?? 0;
  }

  fill(first: number, count: number, value: number): void {
    this.#each(first, count, (chunk, from, to) => chunk.fill(value, from, to));
  }

  /** Copies the bytes of these pages out. */
  copy(first: number, count: number, into: Uint8Array): void {
    let at = 0;
    this.#each(first, count, (chunk, from, to) => {
      into.set(chunk.subarray(from, to), at);
      at += to - from;
    });
  }

  /** How many pages from `first` on, at most `count`, have the same value under the mask as the first of them. */
  sameFor(first: number, count: number, mask: number): number {
    const value = this.get(first) & mask;
    let same = 0;
    while (same < count) {
      const page = first + same;
      const index = Math.floor(page / CHUNK_PAGES);
      const from = page % CHUNK_PAGES;
      const to = Math.min(CHUNK_PAGES, from + count - same);
      const chunk = this.#chunks.get(index);
      if (chunk === undefined) {
        if (value !== 0) return same;
        same += to - from;
        continue;
      }
      for (let at = from; at < to; at += 1) {
        if (((chunk[at] ?? 0) & mask) !== value) return same + at - from;
      }
      same += to - from;
    }
    return same;
  }

  #each(first: number, count: number, visit: (chunk: Uint8Array, from: number, to: number) => void): void {
    const end = first + count;
    for (let page = first; page < end; ) {
      const index = Math.floor(page / CHUNK_PAGES);
      const from = page % CHUNK_PAGES;
      const to = Math.min(CHUNK_PAGES, from + end - page);
      let chunk = this.#chunks.get(index);
      if (chunk === undefined) {
        chunk = new Uint8Array(CHUNK_PAGES);
        this.#chunks.set(index, chunk);
      }
      visit(chunk, from, to);
      page += to - from;
    }
  }
}

/** A 64-bit hash, in two halves, for each page of a space; 0 = not known. */
export class PageHashes {
  readonly #chunks = new Map<number, Uint32Array>();

  matches(page: number, low: number, high: number): boolean {
    const chunk = this.#chunks.get(Math.floor(page / CHUNK_PAGES));
    if (chunk === undefined) return false;
    const at = (page % CHUNK_PAGES) * 2;
    return chunk[at] === low && chunk[at + 1] === high;
  }

  get(page: number): { low: number; high: number } {
    const chunk = this.#chunks.get(Math.floor(page / CHUNK_PAGES));
    const at = (page % CHUNK_PAGES) * 2;
    return { low: chunk?.[at] ?? 0, high: chunk?.[at + 1] ?? 0 };
  }

  set(page: number, low: number, high: number): void {
    const index = Math.floor(page / CHUNK_PAGES);
    let chunk = this.#chunks.get(index);
    if (chunk === undefined) {
      chunk = new Uint32Array(CHUNK_PAGES * 2);
      this.#chunks.set(index, chunk);
    }
    const at = (page % CHUNK_PAGES) * 2;
    chunk[at] = low;
    chunk[at + 1] = high;
  }

  clear(first: number, count: number): void {
    if (this.#chunks.size === 0) return;
    const end = first + count;
    for (let page = first; page < end; ) {
      const from = page % CHUNK_PAGES;
      const to = Math.min(CHUNK_PAGES, from + end - page);
      this.#chunks.get(Math.floor(page / CHUNK_PAGES))?.fill(0, from * 2, to * 2);
      page += to - from;
    }
  }
}
