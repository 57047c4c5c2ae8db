import { once } from 'node:events';
import type { Duplex } from 'node:stream';
import { z } from 'zod';
import { errorReportSchema } from '#src/telemetry/errors.ts';
import { type ByteReader, malformed } from './byte-reader.ts';

/**
 * One stream carries all passes over all trees of a migration. To the destination go frames (a letter, a u32 length and
 * so many bytes, numbers little-endian):
 *
 *   P JSON    a pass over one tree begins (passSchema)
 *   D bytes   a part of it (see header.ts)
 *   E         it ends
 *   R         start what the next pass may need
 *
 * Every E and R is answered in order with a frame A of JSON (answerSchema). After an answer with an error comes nothing.
 */
export type FrameKind = 'P' | 'D' | 'E' | 'R' | 'A';

export const passSchema = z.strictObject({ tree: z.string().max(4200) });

export const answerSchema = z.union([
  z.strictObject({
    bytes: z.number().int().min(0),
    files: z.number().int().min(0),
    /** Milliseconds from the first frame of a pass to the end of its work at the destination. */
    elapsed_ms: z.number().min(0),
  }),
  z.strictObject({ error: errorReportSchema }),
]);
export type Answer = z.infer<typeof answerSchema>;

const HEAD_BYTES = 5;
export const DATA_LIMIT_BYTES = 4 * 1024 * 1024;
const TEXT_LIMIT_BYTES = 256 * 1024;
const LIMITS: Record<FrameKind, number> = {
  P: TEXT_LIMIT_BYTES,
  D: DATA_LIMIT_BYTES,
  E: 0,
  R: 0,
  A: TEXT_LIMIT_BYTES,
};
/** Small frames are written together until they are this many bytes. */
const COALESCE_BYTES = 128 * 1024;

export interface Frame {
  kind: FrameKind;
  bytes: Buffer;
}

function isKind(letter: string): letter is FrameKind {
  return letter in LIMITS;
}

/** The next frame, or undefined where the stream ends between two. */
export async function readFrame(reader: ByteReader): Promise<Frame | undefined> {
  if (await reader.isAtEnd()) return undefined;
  const head = await reader.read(HEAD_BYTES);
  const kind = head.toString('latin1', 0, 1);
  const length = head.readUInt32LE(1);
  if (!isKind(kind)) throw malformed(`has a frame of the kind ${JSON.stringify(kind)}`);
  if (length > LIMITS[kind]) throw malformed(`has a frame of ${length} bytes`);
  return { kind, bytes: length === 0 ? NOTHING : await reader.read(length) };
}

export function parseFrame<T>(frame: Frame, schema: z.ZodType<T>): T {
  let value: unknown;
  try {
    value = JSON.parse(frame.bytes.toString('utf8'));
  } catch {
    throw malformed('has a frame that is not JSON');
  }
  const parsed = schema.safeParse(value);
  if (!parsed.success) throw malformed(`has a frame that is not valid: ${z.prettifyError(parsed.error)}`);
  return parsed.data;
}

const NOTHING = Buffer.alloc(0);

/** Writes frames, small ones together, and waits where the network is behind. */
export class FrameWriter {
  readonly #stream: Duplex;
  #parts: Uint8Array[] = [];
  #size = 0;

  constructor(stream: Duplex) {
    this.#stream = stream;
  }

  async write(kind: FrameKind, bytes: Uint8Array = NOTHING): Promise<void> {
    for (let start = 0; start === 0 || start < bytes.length; start += DATA_LIMIT_BYTES) {
      const part = bytes.subarray(start, start + DATA_LIMIT_BYTES);
      const head = Buffer.alloc(HEAD_BYTES);
      head.write(kind, 0, 'latin1');
      head.writeUInt32LE(part.length, 1);
      this.#parts.push(head, part);
      this.#size += HEAD_BYTES + part.length;
      if (this.#size >= COALESCE_BYTES) await this.flush();
    }
  }

  async writeJson(kind: FrameKind, value: unknown): Promise<void> {
    await this.write(kind, Buffer.from(JSON.stringify(value), 'utf8'));
  }

  async flush(): Promise<void> {
    if (this.#size === 0) return;
    const whole = Buffer.concat(this.#parts, this.#size);
    this.#parts = [];
    this.#size = 0;
    if (this.#stream.destroyed) throw this.#stream.errored ?? new Error('the stream of files was closed');
    if (this.#stream.write(whole)) return;
    // `once` rejects on an error; a stream that is closed without one must not be waited for either.
    const closed = new AbortController();
    const onClose = (): void => closed.abort();
    this.#stream.once('close', onClose);
    try {
      await once(this.#stream, 'drain', { signal: closed.signal });
    } finally {
      this.#stream.off('close', onClose);
    }
  }
}
