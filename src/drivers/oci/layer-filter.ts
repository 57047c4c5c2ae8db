import { Transform, type TransformCallback } from 'node:stream';

const BLOCK = 512;
const BLOB = /^(?:\.\/)?blobs\/sha256\/([0-9a-f]{64})$/;
/** Engines write no other extended header than a few short records. */
const EXTENDED_LIMIT_BYTES = 1024 * 1024;

/**
 * Leaves layers out of an image's archive: the engine that loads it takes those from its storage when it has them, and
 * does not look for them in the archive. What comes in is what the engine here writes.
 */
export class LayerFilter extends Transform {
  /** Layers that were left out. */
  skipped = 0;
  readonly #known: ReadonlySet<string>;
  #block = Buffer.alloc(0);
  /** Bytes of the present entry still to come, with its padding, and what happens to them. */
  #left = 0;
  #drops = false;
  /** An extended header whose entry has not come yet; undefined when there is none. */
  #extended: Buffer[] | undefined;
  #extendedLeft = 0;

  /** `known` are digests as `sha256:…`. */
  constructor(known: Iterable<string>) {
    super();
    this.#known = new Set([...known].map((digest) => digest.replace(/^sha256:/, '')));
  }

  override _transform(chunk: Buffer, _encoding: BufferEncoding, callback: TransformCallback): void {
    try {
      for (let rest = chunk; rest.length > 0; ) rest = this.#take(rest);
      callback();
    } catch (error) {
      callback(error instanceof Error ? error : new Error(String(error)));
    }
  }

  /** Takes some bytes and returns the rest. */
  #take(bytes: Buffer): Buffer {
    if (this.#extendedLeft > 0) {
      const part = bytes.subarray(0, this.#extendedLeft);
      this.#extended?.push(part);
      this.#extendedLeft -= part.length;
      return bytes.subarray(part.length);
    }
    if (this.#left > 0) {
      const part = bytes.subarray(0, this.#left);
      this.#left -= part.length;
      if (!this.#drops) this.push(part);
      return bytes.subarray(part.length);
    }
    const part = bytes.subarray(0, BLOCK - this.#block.length);
    this.#block = Buffer.concat([this.#block, part]);
    if (this.#block.length === BLOCK) {
      const header = this.#block;
      this.#block = Buffer.alloc(0);
      this.#begin(header);
    }
    return bytes.subarray(part.length);
  }

  #begin(header: Buffer): void {
    const type = String.fromCharCode(header[156] ?? 0);
    const padded = Math.ceil(sizeOf(header, this.#extended) / BLOCK) * BLOCK;
    if (type === 'x') {
      if (padded > EXTENDED_LIMIT_BYTES) throw new Error(`an extended header of ${padded} bytes in an image's archive`);
      this.#extended = [header];
      this.#extendedLeft = padded;
      return;
    }
    const name = header.toString('latin1', 0, 100).split('\0', 1)[0] ?? '';
    const digest = BLOB.exec(name)?.[1];
    this.#drops = type === '0' && digest !== undefined && this.#known.has(digest);
    this.#left = padded;
    if (this.#drops) this.skipped += 1;
    else for (const held of [...(this.#extended ?? []), header]) this.push(held);
    this.#extended = undefined;
  }
}

/** Octal, or base 256 for what has no octal form; a record in an extended header goes before. */
function sizeOf(header: Buffer, extended: readonly Buffer[] | undefined): number {
  const record =
    extended === undefined ? null : /\n?\d+ size=(\d+)\n/.exec(Buffer.concat(extended).toString('latin1', BLOCK));
  if (record !== null) return Number(record[1]);
  const field = header.subarray(124, 136);
  if (((field[0] ?? 0) & 0x80) !== 0) return Number(BigInt(`0x${field.toString('hex', 1)}`));
  return Number.parseInt(field.toString('latin1').split('\0', 1)[0]?.trim() || '0', 8);
}
