import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { blake3Of } from './digest.ts';
import {
  CONTENT_MAX_BYTES,
  decodeHead,
  decodeRanges,
  eachRun,
  encodeControl,
  encodeHead,
  encodeRanges,
  Flag,
  type Frame,
  FrameParser,
  HEAD_BYTES,
  META_MAX_BYTES,
  type Run,
  RunKind,
  RunWriter,
} from './frames.ts';
import { normaliseRanges, PAGE_BYTES, PAGES_MAX } from './model.ts';

interface Sent {
  readonly type: 'data' | 'forget' | 'cache';
  readonly meta: Buffer;
  readonly payload: Buffer;
  readonly space: number;
}

const sent: fc.Arbitrary<Sent> = fc
  .record({
    type: fc.constantFrom('data', 'forget', 'cache'),
    meta: fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)),
    pages: fc.nat(3),
    fill: fc.nat(255),
    space: fc.nat(4000),
  })
  .map(({ type, meta, pages, fill, space }) => ({
    type,
    meta,
    payload: Buffer.alloc(type === 'forget' ? 0 : pages * PAGE_BYTES, fill),
    space,
  }));

function encode({ type, meta, payload, space }: Sent, seq: number): Buffer {
  const digest = blake3Of(meta, payload);
  const parts = { type, flags: Flag.final, meta, space, payload_bytes: payload.length, argument: seq * 2, digest };
  return Buffer.concat([encodeHead(parts, seq), payload]);
}

function parse(stream: Buffer, chunk_bytes: number): { frames: Frame[]; failure: unknown } {
  const frames: Frame[] = [];
  const parser = new FrameParser((frame) => {
    frames.push({ ...frame, meta: Buffer.from(frame.meta), payload: Buffer.from(frame.payload) });
  });
  try {
    for (let at = 0; at < stream.length; at += chunk_bytes) parser.push(stream.subarray(at, at + chunk_bytes));
    return { frames, failure: undefined };
  } catch (failure) {
    return { frames, failure };
  }
}

function ping(seq: number): Buffer {
  return encodeControl({ type: 'status', meta: Buffer.alloc(8) }, seq);
}

describe('frames', () => {
  it('come out as they went in, whatever the chunks', () => {
    fc.assert(
      fc.property(fc.array(sent, { maxLength: 6 }), fc.integer({ min: 7, max: 9000 }), (list, chunk_bytes) => {
        const stream = Buffer.concat(list.map((one, at) => encode(one, at + 1)));
        const { frames, failure } = parse(stream, chunk_bytes);
        expect(failure).toBeUndefined();
        expect(frames.map(({ type, space }) => ({ type, space }))).toEqual(
          list.map(({ type, space }) => ({ type, space })),
        );
        const same = frames.every(
          ({ meta, payload }, at) => list[at]?.meta.equals(meta) && list[at].payload.equals(payload),
        );
        expect(same).toBe(true);
        expect(frames.map(({ seq, argument, flags }) => ({ seq, argument, flags }))).toEqual(
          list.map((_, at) => ({ seq: at + 1, argument: at * 2 + 2, flags: Flag.final })),
        );
      }),
      { numRuns: 50 },
    );
  });

  it('are refused when any bit of a head, or of a body without pages, was altered', () => {
    const whole = encode({ type: 'forget', meta: Buffer.alloc(64, 3), payload: Buffer.alloc(0), space: 5 }, 1);
    for (let bit = 0; bit < whole.length * 8; bit += 1) {
      const altered = Buffer.from(whole);
      const byte = Math.floor(bit / 8);
      // The last digest covers the head; what is behind it is covered by the digest in the head.
      altered.writeUInt8(altered.readUInt8(byte) ^ (1 << (bit % 8)), byte);
      const { frames, failure } = parse(altered, 37);
      expect(frames).toEqual([]);
      expect(failure).toMatchObject({ code: 'UMS_E_TRANSFER' });
    }
  });

  it('are refused when they come twice or out of order', () => {
    expect(parse(Buffer.concat([ping(1), ping(1)]), 1000).failure).toBeDefined();
    expect(parse(Buffer.concat([ping(1), ping(3), ping(2)]), 1000).failure).toBeDefined();
    expect(parse(Buffer.concat([ping(2)]), 1000).failure).toBeDefined();
  });

  it('are bounded before anything is kept for them', () => {
    const digest = blake3Of(Buffer.alloc(0));
    const refused = [
      { type: 'data', payload_bytes: CONTENT_MAX_BYTES + PAGE_BYTES, digest },
      { type: 'data', payload_bytes: 100, digest },
      { type: 'data', encoding: 'lz4', payload_bytes: PAGE_BYTES, raw_bytes: PAGE_BYTES, digest },
      { type: 'ack', payload_bytes: PAGE_BYTES, digest },
    ] as const;
    for (const parts of refused) expect(() => decodeHead(encodeHead(parts, 1))).toThrow(/Memory pages/);
    const huge = encodeHead({ type: 'forget', digest, meta: Buffer.alloc(META_MAX_BYTES + 16) }, 1);
    expect(() => decodeHead(huge.subarray(0, HEAD_BYTES))).toThrow(/numbers/);
  });
});

describe('ranges and runs', () => {
  const range = fc.record({
    first: fc.integer({ min: 0, max: PAGES_MAX - 2 ** 20 }),
    count: fc.integer({ min: 1, max: 2 ** 20 }),
  });

  it('are the same after the wire', () => {
    fc.assert(
      fc.property(fc.array(range, { maxLength: 40 }), (ranges) => {
        expect(decodeRanges(encodeRanges(ranges))).toEqual(ranges);
      }),
    );
  });

  it('of pages are joined where they follow one another, and nothing is lost', () => {
    const page = fc.record({
      kind: fc.constantFrom(RunKind.data, RunKind.zero, RunKind.reference),
      first: fc.integer({ min: 0, max: 50 }),
      space: fc.nat(2),
      reference: fc.integer({ min: 0, max: 60 }),
    });
    fc.assert(
      fc.property(fc.array(page, { maxLength: 200 }), (pages) => {
        const writer = new RunWriter();
        for (const { kind, first, space, reference } of pages) writer.add(kind, first, 1, space, reference);
        const seen: unknown[] = [];
        eachRun(writer.meta(), (run: Run) => {
          for (let at = 0; at < run.count; at += 1) {
            const refers = run.kind === RunKind.reference;
            seen.push({
              kind: run.kind,
              first: run.first + at,
              ...(refers ? { space: run.space, reference: run.reference + at } : {}),
            });
          }
        });
        expect(seen).toEqual(
          pages.map(({ kind, first, space, reference }) => ({
            kind,
            first,
            ...(kind === RunKind.reference ? { space, reference } : {}),
          })),
        );
      }),
    );
  });

  it('that make no sense are refused', () => {
    for (const bad of [Buffer.alloc(15), Buffer.alloc(16), encodeRanges([{ first: PAGES_MAX, count: 1 }])]) {
      expect(() => decodeRanges(bad)).toThrow(/Memory pages/);
    }
    for (const bad of [Buffer.alloc(15), Buffer.alloc(16, 7), Buffer.from('02010000000000000100000000000000', 'hex')]) {
      expect(() => eachRun(bad, () => undefined)).toThrow(/Memory pages/);
    }
    expect(normaliseRanges([])).toEqual([]);
  });
});
