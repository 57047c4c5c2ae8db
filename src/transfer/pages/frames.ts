import { blake3Of, DIGEST_BYTES } from './digest.ts';
import { PAGE_BYTES, PAGES_MAX, type PageRange, pagesFailed } from './model.ts';

/**
 * The wire of the page path (docs/protocol.md, "Pages"): frames of a fixed head, meta (numbers: ranges, runs, names) and
 * a payload (content of pages, perhaps compressed). The head has a digest of its own, so that a length is never believed
 * before it was checked; the body's digest covers meta and the content as it is after decompression and after references
 * were looked up.
 */
export const WIRE_VERSION = 1;
export const HEAD_BYTES = 80;
export const META_MAX_BYTES = 256 * 1024;
export const CONTENT_MAX_BYTES = 4 * 1024 * 1024;
/** What a sender puts into a frame unless it has a reason. */
export const CONTENT_BYTES = 1024 * 1024;

const MAGIC = 0x50534d55;
const HEAD_DIGESTED_BYTES = 64;
const BODY_DIGEST_AT = 32;

export const FrameType = {
  hello: 1,
  space: 2,
  data: 3,
  confirm: 4,
  unchanged: 5,
  forget: 6,
  seal: 7,
  ack: 8,
  nak: 9,
  demand: 10,
  missing: 11,
  status: 12,
  cache: 13,
  fail: 14,
} as const;
export type FrameTypeName = keyof typeof FrameType;
const TYPE_NAMES = new Map<number, FrameTypeName>();
for (const name of Object.keys(FrameType)) {
  if (isTypeName(name)) TYPE_NAMES.set(FrameType[name], name);
}
function isTypeName(name: string): name is FrameTypeName {
  return Object.hasOwn(FrameType, name);
}

export const Flag = {
  /** data: the content is final. */
  final: 1,
  /** demand: a process waits for it. data: it answers such a demand. */
  urgent: 2,
  /** seal: the list begins anew. */
  first: 4,
  /** seal: the list is complete, check it. cache, missing: the last of them. */
  last: 8,
  /** status: the answer to one. */
  reply: 16,
} as const;

export const ENCODINGS = ['none', 'lz4', 'zstd'] as const;
export type Encoding = (typeof ENCODINGS)[number];

export interface FrameHead {
  readonly type: FrameTypeName;
  readonly flags: number;
  readonly encoding: Encoding;
  /** Counts from 1 on each connection and direction. */
  readonly seq: number;
  readonly space: number;
  readonly meta_bytes: number;
  readonly payload_bytes: number;
  /** Bytes of the payload after decompression. */
  readonly raw_bytes: number;
  /** What it stands for depends on the type. */
  readonly argument: number;
}

export interface Frame extends FrameHead {
  readonly meta: Buffer;
  readonly payload: Buffer;
  readonly digest: Buffer;
}

export interface FrameParts {
  readonly type: FrameTypeName;
  readonly flags?: number;
  readonly encoding?: Encoding;
  readonly space?: number;
  readonly meta?: Buffer;
  readonly payload_bytes?: number;
  readonly raw_bytes?: number;
  readonly argument?: number;
  readonly digest: Buffer;
}

/** Head and meta of a frame; its payload is to follow as it is. */
export function encodeHead(parts: FrameParts, seq: number): Buffer {
  const meta_bytes = parts.meta?.length ?? 0;
  const out = Buffer.allocUnsafe(HEAD_BYTES + meta_bytes);
  out.writeUInt32LE(MAGIC, 0);
  out[4] = WIRE_VERSION;
  out[5] = FrameType[parts.type];
  out[6] = parts.flags ?? 0;
  out[7] = ENCODINGS.indexOf(parts.encoding ?? 'none');
  out.writeUInt32LE(seq, 8);
  out.writeUInt32LE(parts.space ?? 0, 12);
  out.writeUInt32LE(meta_bytes, 16);
  out.writeUInt32LE(parts.payload_bytes ?? 0, 20);
  out.writeUInt32LE(parts.raw_bytes ?? parts.payload_bytes ?? 0, 24);
  out.writeUInt32LE(parts.argument ?? 0, 28);
  parts.digest.copy(out, BODY_DIGEST_AT, 0, DIGEST_BYTES);
  blake3Of(out.subarray(0, HEAD_DIGESTED_BYTES)).copy(out, HEAD_DIGESTED_BYTES, 0, HEAD_BYTES - HEAD_DIGESTED_BYTES);
  if (parts.meta !== undefined) parts.meta.copy(out, HEAD_BYTES);
  return out;
}

export type ControlParts = Omit<FrameParts, 'digest' | 'encoding' | 'payload_bytes' | 'raw_bytes'>;

/** A whole frame that has no payload. */
export function encodeControl(parts: ControlParts, seq: number): Buffer {
  const digest = blake3Of(parts.meta ?? Buffer.alloc(0));
  return encodeHead({ ...parts, digest }, seq);
}

function malformed(what: string): Error {
  return pagesFailed(`the other side sent ${what}`);
}

/** Parses and bounds a head. Throws for anything that this version would not have sent. */
export function decodeHead(head: Buffer): FrameHead {
  if (head.readUInt32LE(0) !== MAGIC) throw malformed('no frame of pages');
  const version = head.readUInt8(4);
  if (version !== WIRE_VERSION) throw malformed(`a frame of version ${version}, and ${WIRE_VERSION} is spoken here`);
  const digest = blake3Of(head.subarray(0, HEAD_DIGESTED_BYTES));
  if (digest.compare(head, HEAD_DIGESTED_BYTES, HEAD_BYTES, 0, HEAD_BYTES - HEAD_DIGESTED_BYTES) !== 0) {
    throw malformed('a frame whose head was altered on the way');
  }
  const type = TYPE_NAMES.get(head.readUInt8(5));
  const encoding = ENCODINGS[head.readUInt8(7)];
  if (type === undefined || encoding === undefined) throw malformed('a frame of an unknown kind');
  const parsed: FrameHead = {
    type,
    flags: head.readUInt8(6),
    encoding,
    seq: head.readUInt32LE(8),
    space: head.readUInt32LE(12),
    meta_bytes: head.readUInt32LE(16),
    payload_bytes: head.readUInt32LE(20),
    raw_bytes: head.readUInt32LE(24),
    argument: head.readUInt32LE(28),
  };
  requireBounded(parsed);
  return parsed;
}

function requireBounded(head: FrameHead): void {
  if (head.meta_bytes > META_MAX_BYTES) throw malformed(`a frame with ${head.meta_bytes} bytes of numbers`);
  if (head.raw_bytes > CONTENT_MAX_BYTES) throw malformed(`a frame with ${head.raw_bytes} bytes of pages`);
  const plain = head.encoding === 'none';
  if (plain ? head.payload_bytes !== head.raw_bytes : head.payload_bytes >= head.raw_bytes) {
    throw malformed('a frame whose lengths contradict each other');
  }
  const carries = head.type === 'data' || head.type === 'cache';
  if (!carries && head.payload_bytes > 0) throw malformed('content where none belongs');
  if (head.type === 'data' && head.raw_bytes % PAGE_BYTES !== 0) throw malformed('a part of a page');
}

/** Puts frames together out of a stream's chunks. Meta and payload of a frame are only valid until the handler returns. */
export class FrameParser {
  readonly #handler: (frame: Frame) => void;
  readonly #head = Buffer.alloc(HEAD_BYTES);
  #headBytes = 0;
  #parsed: FrameHead | undefined;
  #body: Buffer = Buffer.alloc(64 * 1024);
  #bodyBytes = 0;
  #seq = 0;

  constructor(handler: (frame: Frame) => void) {
    this.#handler = handler;
  }

  /** Throws when what came is malformed; nothing may be pushed after that. */
  push(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length) {
      at += this.#parsed === undefined ? this.#pushHead(chunk, at) : this.#pushBody(chunk, at, this.#parsed);
    }
  }

  #pushHead(chunk: Buffer, at: number): number {
    const taken = chunk.copy(this.#head, this.#headBytes, at);
    this.#headBytes += taken;
    if (this.#headBytes < HEAD_BYTES) return taken;
    this.#headBytes = 0;
    const head = decodeHead(this.#head);
    this.#seq += 1;
    if (head.seq !== this.#seq) throw malformed('a frame out of its order');
    this.#parsed = head;
    this.#bodyBytes = 0;
    const body_bytes = head.meta_bytes + head.payload_bytes;
    if (this.#body.length < body_bytes) this.#body = Buffer.allocUnsafeSlow(body_bytes);
    if (body_bytes === 0) this.#complete(head);
    return taken;
  }

  #pushBody(chunk: Buffer, at: number, head: FrameHead): number {
    const whole = head.meta_bytes + head.payload_bytes;
    const taken = chunk.copy(this.#body, this.#bodyBytes, at, at + (whole - this.#bodyBytes));
    this.#bodyBytes += taken;
    if (this.#bodyBytes === whole) this.#complete(head);
    return taken;
  }

  #complete(head: FrameHead): void {
    this.#parsed = undefined;
    const meta = this.#body.subarray(0, head.meta_bytes);
    const payload = this.#body.subarray(head.meta_bytes, head.meta_bytes + head.payload_bytes);
    const digest = this.#head.subarray(BODY_DIGEST_AT, BODY_DIGEST_AT + DIGEST_BYTES);
    // A data frame's content is only known once references were looked up: who handles it checks its digest.
    if (head.type !== 'data' && !blake3Of(meta, payload).equals(digest)) {
      throw malformed('a frame that was altered on the way');
    }
    this.#handler({ ...head, meta, payload, digest });
  }
}

const RANGE_BYTES = 16;
/** So many ranges fit into one frame besides a name. */
export const RANGES_PER_FRAME = 8192;
/** Pages that the ranges of one frame may have in all: 4 TiB. */
const RANGE_PAGES_MAX = 2 ** 30;
const HIGH = 2 ** 32;

export function encodeRanges(ranges: readonly PageRange[], prefix: Buffer = Buffer.alloc(0)): Buffer {
  const out = Buffer.allocUnsafe(prefix.length + ranges.length * RANGE_BYTES);
  prefix.copy(out);
  let at = prefix.length;
  for (const { first, count } of ranges) {
    out.writeUInt32LE(first % HIGH, at);
    out.writeUInt32LE(Math.floor(first / HIGH), at + 4);
    out.writeUInt32LE(count % HIGH, at + 8);
    out.writeUInt32LE(Math.floor(count / HIGH), at + 12);
    at += RANGE_BYTES;
  }
  return out;
}

export function decodeRanges(meta: Buffer): PageRange[] {
  if (meta.length % RANGE_BYTES !== 0) throw malformed('a part of a range');
  const ranges: PageRange[] = [];
  let pages = 0;
  for (let at = 0; at < meta.length; at += RANGE_BYTES) {
    const first = meta.readUInt32LE(at) + meta.readUInt32LE(at + 4) * HIGH;
    const count = meta.readUInt32LE(at + 8) + meta.readUInt32LE(at + 12) * HIGH;
    if (count === 0 || first + count > PAGES_MAX) throw malformed('a range of no pages');
    pages += count;
    if (pages > RANGE_PAGES_MAX) throw malformed('ranges of too many pages');
    ranges.push({ first, count });
  }
  return ranges;
}

/** Lists of ranges that fit into one frame each. */
export function inFrames(ranges: readonly PageRange[]): PageRange[][] {
  const lists: PageRange[][] = [];
  for (let at = 0; at < ranges.length; at += RANGES_PER_FRAME) lists.push(ranges.slice(at, at + RANGES_PER_FRAME));
  return lists;
}

/** What a run of pages in a data frame is. */
export const RunKind = { data: 0, zero: 1, reference: 2 } as const;
const RUN_BYTES = 16;
const REFERENCE_RUN_BYTES = 32;
export const RUN_PAGES_MAX = 2 ** 24 - 1;
/** In place of a space: the receiver's cache of an earlier migration. */
export const CACHE_SPACE = 4095;

/** Runs of pages of a data frame, as meta. Neighbouring pages of one kind become one run. */
export class RunWriter {
  readonly #out = Buffer.allocUnsafeSlow(META_MAX_BYTES);
  #length = 0;
  #last = -1;
  #kind = -1;
  #next = -1;
  #nextReference = -1;
  #referenceSpace = -1;
  #count = 0;

  /** Whether this many more runs might not fit. */
  full(runs: number): boolean {
    return this.#length + runs * REFERENCE_RUN_BYTES > META_MAX_BYTES;
  }

  get empty(): boolean {
    return this.#length === 0;
  }

  reset(): void {
    this.#length = 0;
    this.#last = -1;
    this.#kind = -1;
  }

  /** Adds pages; `full` must be false. */
  add(kind: number, first: number, count: number, space = 0, reference = 0): void {
    const joins =
      kind === this.#kind &&
      first === this.#next &&
      this.#count + count <= RUN_PAGES_MAX &&
      (kind !== RunKind.reference || (space === this.#referenceSpace && reference === this.#nextReference));
    if (joins) {
      this.#count += count;
      this.#next += count;
      this.#nextReference += count;
      this.#out.writeUInt32LE(kind + this.#count * 256, this.#last);
      return;
    }
    const at = this.#length;
    this.#out.writeUInt32LE(kind + count * 256, at);
    this.#out.writeUInt32LE(0, at + 4);
    this.#writeNumber(first, at + 8);
    this.#length += RUN_BYTES;
    if (kind === RunKind.reference) {
      this.#out.writeUInt32LE(space, at + 16);
      this.#out.writeUInt32LE(0, at + 20);
      this.#writeNumber(reference, at + 24);
      this.#length += RUN_BYTES;
    }
    this.#last = at;
    this.#kind = kind;
    this.#count = count;
    this.#next = first + count;
    this.#referenceSpace = space;
    this.#nextReference = reference + count;
  }

  /** What was added so far; valid until the next reset. */
  meta(): Buffer {
    return this.#out.subarray(0, this.#length);
  }

  #writeNumber(value: number, at: number): void {
    this.#out.writeUInt32LE(value % HIGH, at);
    this.#out.writeUInt32LE(Math.floor(value / HIGH), at + 4);
  }
}

export interface Run {
  kind: number;
  first: number;
  count: number;
  space: number;
  reference: number;
}

/** Calls back for each run with the same object; every number in it is bounded. */
export function eachRun(meta: Buffer, visit: (run: Run) => void): void {
  const run: Run = { kind: 0, first: 0, count: 0, space: 0, reference: 0 };
  for (let at = 0; at < meta.length; ) {
    if (at + RUN_BYTES > meta.length) throw malformed('a part of a run of pages');
    const word = meta.readUInt32LE(at);
    run.kind = word % 256;
    run.count = Math.floor(word / 256);
    run.first = meta.readUInt32LE(at + 8) + meta.readUInt32LE(at + 12) * HIGH;
    if (run.count === 0 || run.first + run.count > PAGES_MAX) throw malformed('a run of no pages');
    at += RUN_BYTES;
    if (run.kind === RunKind.reference) {
      if (at + RUN_BYTES > meta.length) throw malformed('a part of a reference');
      run.space = meta.readUInt32LE(at);
      run.reference = meta.readUInt32LE(at + 8) + meta.readUInt32LE(at + 12) * HIGH;
      if (run.reference + run.count > PAGES_MAX) throw malformed('a reference to no pages');
      at += REFERENCE_RUN_BYTES - RUN_BYTES;
    } else if (run.kind !== RunKind.data && run.kind !== RunKind.zero) {
      throw malformed('a run of an unknown kind');
    }
    visit(run);
  }
}
