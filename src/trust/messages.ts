import type { Writable } from 'node:stream';
import type { z } from 'zod';
import { UmsError } from '#src/telemetry/errors.ts';
import { malformed } from './failures.ts';
import type { ByteReader } from './reader.ts';

/**
 * A JSON message: its length in 4 bytes, big-endian, then that many bytes of UTF-8. A length of 2^32-1 has no body and
 * says only that the sender is alive.
 */
export const ALIVE = 0xffff_ffff;
/** As many signs of life as this in a row, with nothing between them, is a peer that wants to keep us waiting for ever. */
const ALIVE_LIMIT = 100_000;

export function encodeLength(length: number): Buffer {
  const bytes = Buffer.allocUnsafe(4);
  bytes.writeUInt32BE(length);
  return bytes;
}

export function encodeMessage(value: unknown, limit_bytes: number): Buffer {
  const body = Buffer.from(JSON.stringify(value));
  if (body.length > limit_bytes) {
    throw new UmsError('UMS_E_PEER_MESSAGE', {
      message: `A message of ${body.length} bytes is over the limit of ${limit_bytes}`,
      fault: 'ums',
    });
  }
  return Buffer.concat([encodeLength(body.length), body]);
}

export function sendMessage(stream: Writable, value: unknown, limit_bytes: number): void {
  stream.write(encodeMessage(value, limit_bytes));
}

/** The next message as plain JSON, unjudged. */
export async function readMessage(reader: ByteReader, limit_bytes: number): Promise<unknown> {
  for (let alive = 0; alive < ALIVE_LIMIT; alive += 1) {
    const head = await reader.take(4);
    if (head === undefined) throw reader.truncated();
    const length = head.readUInt32BE();
    if (length === ALIVE) continue;
    if (length === 0 || length > limit_bytes) {
      throw malformed(reader.from, `a message of ${length} bytes, where 1 to ${limit_bytes} are allowed`);
    }
    const body = await reader.take(length);
    if (body === undefined) throw reader.truncated();
    return parseJson(body, reader.from);
  }
  throw malformed(reader.from, 'signs of life without end');
}

function parseJson(body: Buffer, from: string): unknown {
  try {
    return JSON.parse(body.toString('utf8'));
  } catch {
    throw malformed(from, 'a message that is not JSON');
  }
}

export function parseWith<T>(schema: z.ZodType<T>, value: unknown, from: string): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issues = parsed.error.issues.slice(0, 8).map((issue) => `${issue.path.join('.')}: ${issue.message}`);
  throw malformed(from, 'a message of the wrong shape', issues.join('\n').slice(0, 4096));
}

export async function receiveMessage<T>(reader: ByteReader, limit_bytes: number, schema: z.ZodType<T>): Promise<T> {
  return parseWith(schema, await readMessage(reader, limit_bytes), reader.from);
}
