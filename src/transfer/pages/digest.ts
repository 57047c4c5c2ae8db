import { Blake3Hasher } from '@napi-rs/blake-hash';
import createXxhash from 'xxhash-wasm';
import { PAGE_BYTES } from './model.ts';

export const DIGEST_BYTES = 32;

const hasher = new Blake3Hasher();

/** BLAKE3 over the pieces in order, as one message. */
export function blake3Of(...pieces: readonly Uint8Array[]): Buffer {
  hasher.reset();
  for (const piece of pieces) if (piece.length > 0) hasher.update(piece);
  return hasher.digestBuffer();
}

const xxhash = await createXxhash();

/** The xxh64 of each page of `content` into `hashes`, from `at` on. Never 0, which stands for an unknown hash. */
export function hashPages(content: Buffer, pages: number, hashes: BigUint64Array, at = 0): void {
  for (let page = 0; page < pages; page += 1) {
    const hash = xxhash.h64Raw(content.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES));
    hashes[at + page] = hash === 0n ? 1n : hash;
  }
}
