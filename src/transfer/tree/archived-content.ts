import { ContentDigester, type FileBlocks } from './blocks.ts';
import { MAP_LIMIT_BYTES, parseMap, type SparseMap } from './sparse-map.ts';

/**
 * Digests the content of a file as it stands in tar's archive. A file whose map is too large or nonsense is not
 * followed: it goes whole when it changes.
 */
export class ArchivedContent {
  readonly #digester: ContentDigester;
  readonly #size: bigint;
  /** What is read of the map; undefined when there is none (left). */
  #map: Buffer | undefined;
  #parts: SparseMap['parts'] | undefined;
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
    const parsed = parseMap(this.#map, this.#size);
    if (typeof parsed === 'string') {
      this.#isFollowed = parsed === 'incomplete' && this.#map.length < MAP_LIMIT_BYTES;
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
