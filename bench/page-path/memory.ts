import { randomFillSync } from 'node:crypto';
import { PAGE_BYTES, type PageReader } from '#src/transfer/pages/model.ts';

const POOL_PAGES = 4096;
const STAMP_BYTES = 8;
/** Of each 64 bytes so many are random in memory that compresses. */
const RANDOM_OF_64 = 16;

/** Memory of any size, made when it is read: copied out of a pool of 16 MiB, each page with its own number in it. */
export class SyntheticMemory implements PageReader {
  readonly #pool = Buffer.allocUnsafeSlow(POOL_PAGES * PAGE_BYTES);
  readonly #pages: number;

  constructor(pages: number, compressible: boolean) {
    this.#pages = pages;
    randomFillSync(this.#pool);
    if (!compressible) return;
    for (let at = 0; at < this.#pool.length; at += 64) this.#pool.fill(0x20, at + RANDOM_OF_64, at + 64);
  }

  read(first: number, count: number, target: Buffer): number {
    const end = Math.min(first + count, this.#pages);
    for (let page = first; page < end; ) {
      const from = page % POOL_PAGES;
      const many = Math.min(end - page, POOL_PAGES - from);
      const at = (page - first) * PAGE_BYTES;
      this.#pool.copy(target, at, from * PAGE_BYTES, (from + many) * PAGE_BYTES);
      for (let stamped = 0; stamped < many; stamped += 1) {
        target.writeDoubleLE(page + stamped + 1, at + stamped * PAGE_BYTES + PAGE_BYTES - STAMP_BYTES);
      }
      page += many;
    }
    return Math.max(0, end - first);
  }
}
