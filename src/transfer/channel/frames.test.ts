import { PassThrough, Readable, Writable } from 'node:stream';
import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { encodeLength, encodeMessage, readMessage } from '#src/trust/messages.ts';
import { ByteReader } from '#src/trust/reader.ts';
import { failureOf } from '#src/trust/trust.fixture.ts';
import { BodyReader, BodyWriter } from './frames.ts';
import { FRAME_LIMIT_BYTES } from './limits.ts';

function encodeBody(pieces: readonly Uint8Array[], digest = true): Buffer {
  const out: Buffer[] = [];
  const sink = new Writable({
    highWaterMark: 1 << 30,
    write: (chunk: Buffer, _encoding, callback) => {
      out.push(chunk);
      callback();
    },
  });
  const writer = new BodyWriter(sink, { peer: 'beta', digest });
  for (const piece of pieces) {
    writer.add(piece);
    writer.tick();
  }
  writer.end();
  return Buffer.concat(out);
}

/** Cuts at the given places, modulo the length. */
function cut(bytes: Buffer, places: readonly number[]): Buffer[] {
  const at = [...new Set(places.map((place) => place % (bytes.length + 1)))].sort((a, b) => a - b);
  const edges = [0, ...at, bytes.length];
  return edges.slice(1).map((edge, index) => bytes.subarray(edges[index] ?? 0, edge));
}

function readerOf(chunks: readonly Buffer[]): ByteReader {
  const source = Readable.from(
    chunks.filter((chunk) => chunk.length > 0),
    { objectMode: true },
  );
  return new ByteReader(source, { from: 'alpha', highWater_bytes: 1 });
}

async function decode(chunks: readonly Buffer[], digest = true): Promise<Buffer> {
  const parts: Buffer[] = [];
  for await (const part of new BodyReader(readerOf(chunks), { digest }).chunks()) parts.push(part);
  return Buffer.concat(parts);
}

const pieces = fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 20 });
const places = fc.array(fc.nat(10_000), { maxLength: 30 });

describe('body frames', () => {
  it('give the same bytes however the stream is cut', async () => {
    await fc.assert(
      fc.asyncProperty(pieces, places, fc.boolean(), async (body, at, digest) => {
        const wire = encodeBody(body, digest);
        expect(await decode(cut(wire, at), digest)).toEqual(Buffer.concat(body));
      }),
    );
  });

  it('are refused when truncated anywhere', async () => {
    await fc.assert(
      fc.asyncProperty(pieces, fc.nat(), places, async (body, end, at) => {
        const wire = encodeBody(body);
        const short = wire.subarray(0, end % wire.length);
        expect((await failureOf(decode(cut(short, at)))).code).toBe('UMS_E_TRANSFER');
      }),
    );
  });

  it('are refused when any bit is flipped', async () => {
    await fc.assert(
      fc.asyncProperty(pieces, fc.nat(), places, async (body, bit, at) => {
        const wire = encodeBody(body);
        const byte = (bit >> 3) % wire.length;
        wire[byte] = (wire[byte] ?? 0) ^ (1 << (bit & 7));
        const { code } = await failureOf(decode(cut(wire, at)));
        expect(['UMS_E_TRANSFER', 'UMS_E_IMAGE_CORRUPT', 'UMS_E_PEER_MESSAGE']).toContain(code);
      }),
    );
  });

  it('name altered content as corrupt', async () => {
    const wire = encodeBody([Buffer.from('the memory of a process')]);
    wire[10] = (wire[10] ?? 0) ^ 1;
    expect((await failureOf(decode([wire]))).code).toBe('UMS_E_IMAGE_CORRUPT');
  });

  it('over the limit are refused before their bytes are read', async () => {
    const source = new PassThrough();
    source.write(encodeLength(FRAME_LIMIT_BYTES + 1));
    const reader = new BodyReader(new ByteReader(source, { from: 'alpha' }), { digest: true });
    expect((await failureOf(reader.next())).code).toBe('UMS_E_PEER_MESSAGE');
  });

  it('hold one piece that is larger than a frame, and many small ones together', () => {
    const large = encodeBody([Buffer.alloc(FRAME_LIMIT_BYTES + 5)], false);
    expect(large.readUInt32BE(0)).toBe(FRAME_LIMIT_BYTES);
    expect(large.length).toBe(FRAME_LIMIT_BYTES + 5 + 3 * 4);
    const sink = new PassThrough({ highWaterMark: 1 << 20 });
    const writer = new BodyWriter(sink, { peer: 'beta', digest: false });
    for (let count = 0; count < 64; count += 1) writer.add(Buffer.alloc(1024));
    expect(sink.readableLength).toBe(64 * 1024 + 4);
  });

  it('wait for a slow receiver', async () => {
    const held: (() => void)[] = [];
    const slow = new Writable({ write: (_chunk, _encoding, callback) => void held.push(callback) });
    const writer = new BodyWriter(slow, { peer: 'beta', digest: false });
    const chunk = Buffer.alloc(128 * 1024);
    let room: Promise<void> | undefined;
    let written = 0;
    for (; room === undefined && written < 100; written += 1) room = writer.write(chunk);
    expect(written).toBeLessThan(10);
    slow.destroy();
    expect((await failureOf(room ?? Promise.resolve())).code).toBe('UMS_E_PEER_UNREACHABLE');
  });

  it('give signs of life only when nothing else was sent', () => {
    const sink = new PassThrough();
    const writer = new BodyWriter(sink, { peer: 'beta', digest: false });
    writer.add(Buffer.from('x'));
    writer.tick();
    expect(sink.read()).toEqual(Buffer.from([0, 0, 0, 1, 0x78]));
    writer.add(Buffer.from('y'));
    writer.flush();
    sink.read();
    writer.tick();
    expect(sink.read()).toBeNull();
    writer.tick();
    expect(sink.read()).toEqual(Buffer.from([0xff, 0xff, 0xff, 0xff]));
  });
});

async function refusalOf(...chunks: Buffer[]): Promise<string> {
  return (await failureOf(readMessage(readerOf(chunks), 100))).code;
}

describe('messages', () => {
  it('are the same however the stream is cut, with signs of life between them', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.json(), { minLength: 1, maxLength: 5 }), places, async (texts, at) => {
        const values = texts.map((text): unknown => JSON.parse(text));
        const wire = values.flatMap((value) => [encodeLength(0xffff_ffff), encodeMessage(value, 1 << 20)]);
        const reader = readerOf(cut(Buffer.concat(wire), at));
        for (const value of values)
          expect(await readMessage(reader, 1 << 20)).toEqual(JSON.parse(JSON.stringify(value)));
      }),
    );
  });

  it('that are too long, empty or not JSON are refused', async () => {
    expect(await refusalOf(encodeLength(101))).toBe('UMS_E_PEER_MESSAGE');
    expect(await refusalOf(encodeLength(0))).toBe('UMS_E_PEER_MESSAGE');
    expect(await refusalOf(encodeLength(2), Buffer.from('{]'))).toBe('UMS_E_PEER_MESSAGE');
    expect(await refusalOf(encodeLength(9), Buffer.from('{}'))).toBe('UMS_E_TRANSFER');
  });

  it('from a peer that falls silent end with the idle limit', async () => {
    const reader = new ByteReader(new PassThrough(), { from: 'alpha', idle_ms: 20 });
    expect((await failureOf(readMessage(reader, 100))).code).toBe('UMS_E_PEER_UNREACHABLE');
  });
});
