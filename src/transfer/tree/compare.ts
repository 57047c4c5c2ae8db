import { closeSync, constants, openSync, readSync } from 'node:fs';
import { setImmediate } from 'node:timers/promises';
import { digestOf, digestOfZeros, FileBlocks } from './blocks.ts';
import { type BytePath, toBytes } from './paths.ts';

/** Read at a time; a multiple of every block size, and what one piece may carry. */
const READ_BYTES = 4 * 1024 * 1024;
/** Reading and digesting is done at once; others run between such slices. */
const SLICE_MS = 8;

export interface Piece {
  offset: number;
  bytes: Uint8Array;
}

/**
 * Reads a file of which the other side holds `known` and gives the pieces that are different there. Afterwards `blocks`
 * says what it holds then, or is undefined when the file was cut short under the reader's hands.
 */
export class Comparison {
  blocks: FileBlocks | undefined;
  readonly #full: BytePath;
  readonly #size: number;
  readonly #known: FileBlocks;

  constructor(full: BytePath, size: number, known: FileBlocks) {
    this.#full = full;
    this.#size = size;
    this.#known = known;
  }

  /** Each piece's bytes are its own. */
  async *pieces(signal: AbortSignal | undefined): AsyncGenerator<Piece, void, undefined> {
    const { blockBytes } = this.#known;
    const blocks = new FileBlocks(BigInt(this.#size), blockBytes);
    const file = openForReading(this.#full);
    if (file === undefined) return;
    try {
      const buffer = Buffer.allocUnsafe(Math.min(READ_BYTES, Math.max(this.#size, 1)));
      let sliceEnds = performance.now() + SLICE_MS;
      for (let start = 0; start < this.#size; ) {
        const read = readSync(file, buffer, 0, Math.min(buffer.length, this.#size - start), start);
        // Cut short: what a smaller file holds is found out in the next round.
        if (read === 0) return;
        const isLast = start + read === this.#size;
        const usable = isLast ? read : read - (read % blockBytes);
        if (usable === 0) return;
        yield* this.#different(buffer.subarray(0, usable), start, blocks);
        start += usable;
        if (performance.now() <= sliceEnds) continue;
        await setImmediate();
        signal?.throwIfAborted();
        sliceEnds = performance.now() + SLICE_MS;
      }
      this.blocks = blocks;
    } finally {
      closeSync(file);
    }
  }

  *#different(bytes: Buffer, start: number, blocks: FileBlocks): Generator<Piece, void, undefined> {
    const { blockBytes } = this.#known;
    let from: number | undefined;
    for (let at = 0; at < bytes.length; at += blockBytes) {
      const block = bytes.subarray(at, at + blockBytes);
      const digest = digestOf(block);
      const number = blocks.count;
      blocks.add(digest);
      const isThere = this.#known.isAt(number, digest) || this.#isGrownZero(number, digest, block.length);
      if (!isThere) from ??= at;
      else if (from !== undefined) {
        yield { offset: start + from, bytes: Buffer.from(bytes.subarray(from, at)) };
        from = undefined;
      }
    }
    if (from !== undefined) yield { offset: start + from, bytes: Buffer.from(bytes.subarray(from)) };
  }

  /** The other side gives a file that grows zeros. */
  #isGrownZero(block: number, digest: Buffer, length: number): boolean {
    return block >= this.#known.count && digest.equals(digestOfZeros(length));
  }
}

/** What a file that went away or was replaced since it was seen says when it is opened. */
const VANISHED = new Set(['ENOENT', 'ENOTDIR', 'ESTALE', 'ELOOP', 'ENXIO']);

function openForReading(full: BytePath): number | undefined {
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
  for (const extra of [constants.O_NOATIME, 0]) {
    try {
      return openSync(toBytes(full), flags | extra);
    } catch (error) {
      const code = error instanceof Error && 'code' in error ? String(error.code) : '';
      if (VANISHED.has(code)) return undefined;
      // Access times may only be left alone by a file's owner and by whoever may act as it.
      if (code !== 'EPERM' || extra === 0) throw error;
    }
  }
  return undefined;
}
