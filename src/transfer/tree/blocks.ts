import { blake3 } from '@napi-rs/blake-hash';
import type { BytePath } from './paths.ts';

/**
 * What the other side holds of large files, block by block, as digests: so that of a file that changed in a few places
 * only these travel again. The digests are cryptographic because nobody compares the contents themselves; half of
 * BLAKE3's 32 bytes still leaves no chance for two blocks to be taken for the same.
 */
const DIGEST_BYTES = 16;
const BLOCK_BYTES = 64 * 1024;
/** Files below are sent whole: reading, comparing and writing them in parts would not be faster. */
export const LARGE_BYTES = 256n * 1024n;
/** So that the digests of one file take at most 4 MiB, blocks of larger files are larger. */
const BLOCKS_WANTED = 262_144n;
/** Far above what memory allows for, see `BUDGET_BYTES`; blocks of four MiB are what one frame may carry. */
export const BLOCK_LIMIT_BYTES = 4 * 1024 * 1024;
/** Digests kept for all trees of a service: 1 TiB of files in the smallest blocks. Files beyond it go whole. */
const BUDGET_BYTES = 256 * 1024 * 1024;

export function blockBytesFor(size: bigint): number {
  let bytes = BLOCK_BYTES;
  while (bytes < BLOCK_LIMIT_BYTES && BigInt(bytes) * BLOCKS_WANTED < size) bytes *= 2;
  return bytes;
}

export function digestOf(block: Uint8Array): Buffer {
  return Buffer.from(blake3(block).subarray(0, DIGEST_BYTES));
}

const zeroDigests = new Map<number, Buffer>();

/** The digest of so many zeros, which is what the other side holds beyond the end of a file that grows. */
export function digestOfZeros(bytes: number): Buffer {
  const known = zeroDigests.get(bytes);
  if (known !== undefined) return known;
  const digest = digestOf(Buffer.alloc(bytes));
  // Two sizes of whole blocks are in use; the rest are last blocks of files.
  if (zeroDigests.size < 64) zeroDigests.set(bytes, digest);
  return digest;
}

/** The digests of one file's blocks; the last one may be shorter. */
export class FileBlocks {
  readonly blockBytes: number;
  readonly #digests: Buffer;
  #count = 0;

  constructor(size: bigint, blockBytes: number) {
    this.blockBytes = blockBytes;
    this.#digests = Buffer.alloc(Math.ceil(Number(size) / blockBytes) * DIGEST_BYTES);
  }

  get bytes(): number {
    return this.#digests.length;
  }

  get count(): number {
    return this.#count;
  }

  get isComplete(): boolean {
    return this.#count * DIGEST_BYTES === this.#digests.length;
  }

  add(digest: Uint8Array): void {
    this.#digests.set(digest, this.#count * DIGEST_BYTES);
    this.#count += 1;
  }

  /** True when the other side holds this digest in that place. */
  isAt(block: number, digest: Buffer): boolean {
    const start = block * DIGEST_BYTES;
    return block < this.#count && digest.equals(this.#digests.subarray(start, start + DIGEST_BYTES));
  }
}

/** Large files of one tree that the other side holds, by path. */
export class BlockStore {
  readonly #files = new Map<BytePath, FileBlocks>();
  readonly #budget: { bytes: number };

  /** Stores made with the same budget share it. */
  constructor(budget: { bytes: number } = newBudget()) {
    this.#budget = budget;
  }

  get(path: BytePath): FileBlocks | undefined {
    return this.#files.get(path);
  }

  set(path: BytePath, blocks: FileBlocks): void {
    this.delete(path);
    if (!blocks.isComplete || blocks.bytes > this.#budget.bytes) return;
    this.#budget.bytes -= blocks.bytes;
    this.#files.set(path, blocks);
  }

  delete(path: BytePath): void {
    const known = this.#files.get(path);
    if (known === undefined) return;
    this.#budget.bytes += known.bytes;
    this.#files.delete(path);
  }

  /** Forgets files that no longer are. */
  keep(isThere: (path: BytePath) => boolean): void {
    for (const path of this.#files.keys()) if (!isThere(path)) this.delete(path);
  }
}

export function newBudget(): { bytes: number } {
  return { bytes: BUDGET_BYTES };
}

/** Digests a file's content as it passes by in pieces of any size. */
export class ContentDigester {
  readonly blocks: FileBlocks;
  readonly #block: Buffer;
  #filled = 0;

  constructor(size: bigint) {
    this.blocks = new FileBlocks(size, blockBytesFor(size));
    this.#block = Buffer.alloc(this.blocks.blockBytes);
  }

  push(bytes: Uint8Array): void {
    const whole = this.#block.length;
    for (let at = 0; at < bytes.length; ) {
      if (this.#filled === 0 && bytes.length - at >= whole) {
        this.blocks.add(digestOf(bytes.subarray(at, at + whole)));
        at += whole;
        continue;
      }
      const part = bytes.subarray(at, at + whole - this.#filled);
      this.#block.set(part, this.#filled);
      this.#filled += part.length;
      at += part.length;
      if (this.#filled === whole) this.#close();
    }
  }

  /** A hole. */
  pushZeros(count: bigint): void {
    const whole = this.#block.length;
    for (let left = count; left > 0n; ) {
      if (this.#filled === 0 && left >= BigInt(whole)) {
        this.blocks.add(digestOfZeros(whole));
        left -= BigInt(whole);
        continue;
      }
      const part = Number(left < BigInt(whole - this.#filled) ? left : BigInt(whole - this.#filled));
      this.#block.fill(0, this.#filled, this.#filled + part);
      this.#filled += part;
      left -= BigInt(part);
      if (this.#filled === whole) this.#close();
    }
  }

  /** At the end of the file. */
  finish(): FileBlocks {
    if (this.#filled > 0) this.#close();
    return this.blocks;
  }

  #close(): void {
    this.blocks.add(digestOf(this.#block.subarray(0, this.#filled)));
    this.#filled = 0;
  }
}
