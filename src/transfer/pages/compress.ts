import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import { compressSync, uncompressSync } from 'lz4-napi';
import type { Encoding } from './frames.ts';
import { PAGE_BYTES } from './model.ts';

const LZ4_PREFIX_BYTES = 4;

/** The content of a payload, or undefined when it is not what it claims to be. Never makes more than `raw_bytes`. */
export function decompress(encoding: Encoding, payload: Buffer, raw_bytes: number): Buffer | undefined {
  if (encoding === 'none') return payload;
  try {
    if (encoding === 'lz4') {
      if (payload.length < LZ4_PREFIX_BYTES || payload.readUInt32LE(0) !== raw_bytes) return undefined;
      const content = uncompressSync(payload);
      return content.length === raw_bytes ? content : undefined;
    }
    const content = zstdDecompressSync(payload, { maxOutputLength: raw_bytes });
    return content.length === raw_bytes ? content : undefined;
  } catch {
    // What was altered on the way shows in many ways; the sender is asked again in all of them.
    return undefined;
  }
}

type Method = 'lz4' | 'zstd';
/** What a method does to the pages of this service, as last measured. */
interface Measured {
  ratio: number;
  bytes_s: number;
}
const SAMPLE_PAGES = 16;
const NEWEST = 0.3;
/** Reading, hashing and writing a byte, whatever becomes of it. */
const BASE_S_PER_BYTE = 0.6e-9;
/** A link that was not measured yet counts as this fast. */
const LINK_UNKNOWN_BYTES_S = 100e6;
/** A method must win by this to be taken: it costs processor time that others could use. */
const WORTH = 0.93;
/** As fast as this, what was measured as the link is the receiver's processor, which has nothing left for decompression. */
const LINK_FAST_BYTES_S = 300e6;
const WORTH_FAST = 0.7;

function run(method: Method, content: Buffer, level: number): Buffer {
  if (method === 'lz4') return compressSync(content);
  return zstdCompressSync(content, { params: { [constants.ZSTD_c_compressionLevel]: level } });
}

/** Takes, frame by frame, the encoding with which the frame is across soonest, by what was measured on samples. */
export class Compressor {
  readonly #mode: 'auto' | Encoding;
  readonly #sample = Buffer.allocUnsafeSlow(SAMPLE_PAGES * PAGE_BYTES);
  readonly #measured: Record<Method, Measured> = {
    lz4: { ratio: 1, bytes_s: 0 },
    zstd: { ratio: 1, bytes_s: 0 },
  };
  #untilSample = 0;

  constructor(mode: 'auto' | Encoding) {
    this.#mode = mode;
  }

  /** Compressed size through raw size of what was measured last, by the better method. */
  get ratio(): number {
    return Math.min(this.#measured.lz4.ratio, this.#measured.zstd.ratio);
  }

  /** The compressed content and how; undefined when it goes as it is. */
  compress(content: Buffer, link_bytes_s: number): { encoding: Method; payload: Buffer } | undefined {
    const link = link_bytes_s === 0 ? LINK_UNKNOWN_BYTES_S : link_bytes_s;
    const level = link > 30e6 ? 1 : 3;
    const method = this.#mode === 'auto' ? this.#choose(content, link, level) : this.#mode;
    if (method === 'none') return undefined;
    const payload = this.#measure(method, content, level);
    return payload.length < content.length * 0.97 ? { encoding: method, payload } : undefined;
  }

  #choose(content: Buffer, link: number, level: number): Encoding {
    this.#untilSample -= 1;
    if (this.#untilSample < 0) {
      this.#takeSample(content, level);
      this.#untilSample = link < 50e6 ? 0 : link < LINK_FAST_BYTES_S ? 3 : 31;
    }
    let best: Encoding = 'none';
    let best_s = Math.max(BASE_S_PER_BYTE, 1 / link) * (link < LINK_FAST_BYTES_S ? WORTH : WORTH_FAST);
    for (const method of ['lz4', 'zstd'] as const) {
      const { ratio, bytes_s } = this.#measured[method];
      if (bytes_s === 0) continue;
      const per_byte_s = Math.max(BASE_S_PER_BYTE + 1 / bytes_s, ratio / link);
      if (per_byte_s >= best_s) continue;
      best = method;
      best_s = per_byte_s;
    }
    return best;
  }

  #takeSample(content: Buffer, level: number): void {
    const pages = content.length / PAGE_BYTES;
    const taken = Math.min(pages, SAMPLE_PAGES);
    const step = Math.max(1, Math.floor(pages / SAMPLE_PAGES));
    for (let at = 0; at < taken; at += 1) {
      content.copy(this.#sample, at * PAGE_BYTES, at * step * PAGE_BYTES, (at * step + 1) * PAGE_BYTES);
    }
    const sample = this.#sample.subarray(0, taken * PAGE_BYTES);
    this.#measure('lz4', sample, level);
    this.#measure('zstd', sample, level);
  }

  #measure(method: Method, content: Buffer, level: number): Buffer {
    const began = performance.now();
    const payload = run(method, content, level);
    const bytes_s = content.length / Math.max((performance.now() - began) / 1000, 1e-6);
    const known = this.#measured[method];
    const weight = known.bytes_s === 0 ? 1 : NEWEST;
    known.ratio += weight * (payload.length / content.length - known.ratio);
    known.bytes_s += weight * (bytes_s - known.bytes_s);
    return payload;
  }
}
