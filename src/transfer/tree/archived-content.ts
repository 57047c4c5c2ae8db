import { ContentDigester, type FileBlocks } from './blocks.ts';

/** A map of a sparse file with more parts than this is not followed: the file goes whole when it changes. */
const MAP_LIMIT_BYTES = 1024 * 1024;
const RECORD_BYTES = 512;

/**
 * Digests the content of a file as it stands in tar's archive. A sparse file begins with a map of its parts: decimal
 * numbers, a line each, first how many parts, then offset and size of each, filled up to a multiple of 512 bytes.
 */
export class ArchivedContent {
  readonly #digester: ContentDigester;
  readonly #size: bigint;
  /** What is read of the map; undefined when there is none (left). */
  #map: Buffer | undefined;
  #parts: { offset: bigint; size: bigint }[] | undefined;
  #position = 0n;
  #isFollowed = true;

  constructor(size: bigint, isSparse: boolean) {
    this.#digester = new ContentDigester(size);
    this.#size = size;
    if (isSparse) this.#map = Buffer.alloc(0);
  }

  push(bytes: Uint8Array): void {
    if (!this.#isFollowed) return;
    if (this.#map === undefined) {
      this.#data(bytes);
      return;
    }
    this.#map = Buffer.concat([this.#map, bytes]);
    const parsed = parseMap(this.#map);
    if (parsed === undefined) {
      this.#isFollowed = this.#map.length < MAP_LIMIT_BYTES;
      return;
    }
    const rest = this.#map.subarray(parsed.length);
    this.#map = undefined;
    this.#parts = parsed.parts;
    this.#data(rest);
  }

  /** The digests, if all of the content went by. */
  finish(): FileBlocks | undefined {
    if (!this.#isFollowed || this.#map !== undefined) return undefined;
    if (this.#parts !== undefined) this.#digester.pushZeros(this.#size - this.#position);
    const blocks = this.#digester.finish();
    return blocks.isComplete ? blocks : undefined;
  }

  #data(bytes: Uint8Array): void {
    if (this.#parts === undefined) {
      this.#digester.push(bytes);
      return;
    }
    for (let at = 0; at < bytes.length; ) {
      const part = this.#parts[0];
      if (part === undefined) return;
      const end = part.offset + part.size;
      if (this.#position >= end) {
        this.#parts.shift();
        continue;
      }
      if (this.#position < part.offset) {
        this.#digester.pushZeros(part.offset - this.#position);
        this.#position = part.offset;
      }
      const left = end - this.#position;
      const piece = bytes.subarray(at, left < BigInt(bytes.length - at) ? at + Number(left) : bytes.length);
      this.#digester.push(piece);
      this.#position += BigInt(piece.length);
      at += piece.length;
    }
  }
}

/** The parts of a sparse file and how many bytes the map takes, or undefined while it is incomplete. */
function parseMap(bytes: Buffer): { parts: { offset: bigint; size: bigint }[]; length: number } | undefined {
  const numbers: bigint[] = [];
  let wanted = 1;
  let at = 0;
  while (numbers.length < wanted) {
    const end = bytes.indexOf(0x0a, at);
    if (end < 0) return undefined;
    const digits = bytes.toString('latin1', at, end);
    // Ours wrote it; anything else is no map, which shows by never becoming complete.
    if (!/^[0-9]{1,19}$/.test(digits)) return undefined;
    numbers.push(BigInt(digits));
    at = end + 1;
    if (numbers.length === 1) wanted = 1 + 2 * Number(numbers[0]);
  }
  const length = Math.ceil(at / RECORD_BYTES) * RECORD_BYTES;
  if (bytes.length < length) return undefined;
  const parts: { offset: bigint; size: bigint }[] = [];
  for (let part = 1; part < numbers.length; part += 2) {
    parts.push({ offset: numbers[part] ?? 0n, size: numbers[part + 1] ?? 0n });
  }
  return { parts, length };
}
