import type { PageCacheWriter } from './cache.ts';
import type { Compressor } from './compress.ts';
import type { DedupeIndex, Location } from './dedupe.ts';
import { blake3Of, hashPages } from './digest.ts';
import { CONTENT_BYTES, Flag, type FrameParts, RunKind, RunWriter } from './frames.ts';
import { PAGE_BYTES, type PageRange, type PageReader } from './model.ts';
import type { PageBytes } from './page-table.ts';
import { appendRange, type RangeCursor } from './ranges.ts';

export const FRAME_PAGES = CONTENT_BYTES / PAGE_BYTES;
/** Pages looked at for one frame: where nearly all are zeros, other work gets its turn in between. */
const SCAN_PAGES_MAX = 4096;

/** What a sender knows of a final page: nothing, that it is on the way, or that the receiver has it. */
export const Sent = { no: 0, underWay: 1, held: 2 } as const;

/** Buffers of one frame's content. What the network may still read from is only given back once it was acknowledged. */
export class BufferPool {
  readonly #free: Buffer[] = [];

  take(): Buffer {
    return this.#free.pop() ?? Buffer.allocUnsafeSlow(CONTENT_BYTES);
  }

  give(buffer: Buffer | undefined): void {
    if (buffer !== undefined) this.#free.push(buffer);
  }
}

export interface BuildOptions {
  readonly space: number;
  readonly reader: PageReader;
  /** What the receiver has already is left out. */
  readonly sent: PageBytes | undefined;
  readonly final: boolean;
  readonly urgent: boolean;
  /** As it is: neither compressed nor by reference. */
  readonly raw: boolean;
  readonly content_bytes: number;
  readonly link_bytes_s: number;
  /** Undefined where looking for duplicates costs more than sending them. */
  readonly dedupe: DedupeIndex | undefined;
  readonly compressor: Compressor;
  readonly cache: PageCacheWriter | undefined;
}

/** A data frame ready to be sent, and what is to be remembered of it until it is acknowledged. */
export interface BuiltFrame {
  readonly parts: FrameParts;
  readonly payload: Buffer;
  /** Belongs to the pool, with the payload in it. */
  readonly buffer: Buffer | undefined;
  readonly taken: readonly PageRange[];
  /** Pages with content and their hashes (in halves), to be found as duplicates later. */
  readonly slots: Float64Array | undefined;
  readonly hashes: Uint32Array | undefined;
  readonly pages: number;
  readonly zero_pages: number;
  readonly reference_pages: number;
  readonly raw_bytes: number;
}

export interface Built {
  readonly frame: BuiltFrame | undefined;
  /** Pages that were not there to be read. */
  readonly absent: readonly PageRange[];
}

/** Makes data frames of pages. One at a time; it reuses what it works with. */
export class FrameBuilder {
  readonly pool = new BufferPool();
  readonly #runs = new RunWriter();
  readonly #zeroPage = Buffer.alloc(PAGE_BYTES);
  readonly #slots = new Float64Array(FRAME_PAGES);
  readonly #hashes = new BigUint64Array(FRAME_PAGES);
  readonly #halves = new Uint32Array(this.#hashes.buffer);
  readonly #isReference = new Uint8Array(FRAME_PAGES);
  readonly #location: Location = { space: 0, page: 0 };
  #taken: { first: number; count: number }[] = [];
  #filled = 0;
  #zeros = 0;
  #absent: { first: number; count: number }[] = [];

  /** Takes pages from the cursor until the frame is full; the cursor stands behind what was taken. */
  build(cursor: RangeCursor, options: BuildOptions): Built {
    this.#runs.reset();
    this.#taken = [];
    this.#filled = 0;
    this.#zeros = 0;
    this.#absent = [];
    const buffer = this.pool.take();
    try {
      this.#collect(cursor, buffer, options);
    } catch (error) {
      this.pool.give(buffer);
      throw error;
    }
    if (this.#filled === 0 && this.#zeros === 0) {
      this.pool.give(buffer);
      return { frame: undefined, absent: this.#absent };
    }
    return { frame: this.#finish(buffer, options), absent: this.#absent };
  }

  #collect(cursor: RangeCursor, buffer: Buffer, options: BuildOptions): void {
    const most = Math.min(FRAME_PAGES, Math.max(1, Math.floor(options.content_bytes / PAGE_BYTES)));
    let scanned = 0;
    while (!cursor.done && this.#filled < most && scanned < SCAN_PAGES_MAX && !this.#runs.full(2 * FRAME_PAGES + 1)) {
      let count = Math.min(cursor.count, most - this.#filled);
      if (options.sent !== undefined) {
        const held = options.sent.get(cursor.first);
        count = options.sent.sameFor(cursor.first, count, 0xff);
        const leftOut = options.urgent ? held === Sent.held : held !== Sent.no;
        if (leftOut) {
          cursor.advance(count);
          scanned += 1;
          continue;
        }
      }
      const target = buffer.subarray(this.#filled * PAGE_BYTES, (this.#filled + count) * PAGE_BYTES);
      const read = Math.max(0, Math.min(count, Math.floor(options.reader.read(cursor.first, count, target))));
      if (read === 0) appendRange(this.#absent, cursor.first, 1);
      else {
        appendRange(this.#taken, cursor.first, read);
        this.#sort(buffer, cursor.first, read);
      }
      cursor.advance(Math.max(read, 1));
      scanned += Math.max(read, 1);
    }
  }

  /** Notes which of the pages just read are zeros, and closes the gaps that leaving them out makes. */
  #sort(buffer: Buffer, first: number, count: number): void {
    const base = this.#filled;
    let kept = base;
    let pending = base;
    for (let at = base; at < base + count; at += 1) {
      if (!this.#isZero(buffer, at * PAGE_BYTES)) {
        this.#slots[kept + (at - pending)] = first + at - base;
        continue;
      }
      kept = this.#move(buffer, pending, at, kept);
      pending = at + 1;
      this.#runs.add(RunKind.zero, first + at - base, 1);
      this.#zeros += 1;
    }
    this.#filled = this.#move(buffer, pending, base + count, kept);
  }

  #move(buffer: Buffer, from: number, to: number, target: number): number {
    if (from !== target && from < to) buffer.copyWithin(target * PAGE_BYTES, from * PAGE_BYTES, to * PAGE_BYTES);
    return target + to - from;
  }

  #isZero(buffer: Buffer, at: number): boolean {
    // A few looks settle it for nearly every page that is not.
    if (buffer[at] !== 0 || buffer[at + 8] !== 0 || buffer[at + 2048] !== 0 || buffer[at + 4088] !== 0) return false;
    return this.#zeroPage.compare(buffer, at, at + PAGE_BYTES) === 0;
  }

  #finish(buffer: Buffer, options: BuildOptions): BuiltFrame {
    const filled = this.#filled;
    const references = this.#describe(buffer, options);
    const content = buffer.subarray(0, filled * PAGE_BYTES);
    const meta = Buffer.from(this.#runs.meta());
    const digest = blake3Of(meta, content);
    const raw = references === 0 ? content : this.#withoutReferences(buffer, filled);
    const packed = options.raw || raw.length === 0 ? undefined : options.compressor.compress(raw, options.link_bytes_s);
    const inBuffer = packed === undefined && raw.length > 0;
    if (!inBuffer) this.pool.give(buffer);
    const payload = packed?.payload ?? raw;
    const flags = (options.final ? Flag.final : 0) | (options.urgent ? Flag.urgent : 0);
    const encoding = packed?.encoding ?? 'none';
    const hashed = options.dedupe !== undefined;
    return {
      parts: {
        type: 'data',
        flags,
        encoding,
        space: options.space,
        meta,
        payload_bytes: payload.length,
        raw_bytes: raw.length,
        digest,
      },
      payload,
      buffer: inBuffer ? buffer : undefined,
      taken: this.#taken,
      slots: hashed ? this.#slots.slice(0, filled) : undefined,
      hashes: hashed ? this.#halves.slice(0, filled * 2) : undefined,
      pages: filled + this.#zeros,
      zero_pages: this.#zeros,
      reference_pages: references,
      raw_bytes: raw.length,
    };
  }

  /** Adds the runs of pages with content; returns how many of them the receiver holds already. */
  #describe(buffer: Buffer, { dedupe, cache, raw, space }: BuildOptions): number {
    const filled = this.#filled;
    const wantsCache = cache?.open === true;
    if (dedupe !== undefined || wantsCache) hashPages(buffer, filled, this.#hashes);
    if (wantsCache) cache.add(buffer, filled, this.#halves);
    if (dedupe === undefined || raw) {
      this.#describeAll(filled);
      return 0;
    }
    let references = 0;
    this.#isReference.fill(0, 0, filled);
    for (let slot = 0; slot < filled; slot += 1) {
      const page = this.#slots[slot] ?? 0;
      if (!this.#find(dedupe, space, page, slot)) {
        this.#runs.add(RunKind.data, page, 1);
        continue;
      }
      references += 1;
      this.#isReference[slot] = 1;
      this.#runs.add(RunKind.reference, page, 1, this.#location.space, this.#location.page);
    }
    return references;
  }

  /** All of it as content: pages that follow one another at once. */
  #describeAll(filled: number): void {
    for (let slot = 0; slot < filled; ) {
      const first = this.#slots[slot] ?? 0;
      let end = slot + 1;
      while (end < filled && this.#slots[end] === first + end - slot) end += 1;
      this.#runs.add(RunKind.data, first, end - slot);
      slot = end;
    }
  }

  #find(dedupe: DedupeIndex, space: number, page: number, slot: number): boolean {
    const low = this.#halves[slot * 2] ?? 0;
    const high = this.#halves[slot * 2 + 1] ?? 0;
    if (dedupe.same(space, page, low, high)) {
      this.#location.space = space;
      this.#location.page = page;
      return true;
    }
    return dedupe.find(low, high, this.#location);
  }

  /** Content without what is sent by reference: in place, for the digest is made already. */
  #withoutReferences(buffer: Buffer, filled: number): Buffer {
    let kept = 0;
    for (let slot = 0; slot < filled; slot += 1) {
      if (this.#isReference[slot] === 1) continue;
      if (kept !== slot) buffer.copyWithin(kept * PAGE_BYTES, slot * PAGE_BYTES, (slot + 1) * PAGE_BYTES);
      kept += 1;
    }
    return buffer.subarray(0, kept * PAGE_BYTES);
  }
}
