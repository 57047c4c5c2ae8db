import { createHash, type Hash } from 'node:crypto';
import type { Writable } from 'node:stream';
import { UmsError } from '#src/telemetry/errors.ts';
import { giveBack } from '#src/trust/slabs.ts';
import { malformed, unreachable } from '#src/trust/failures.ts';
import { ALIVE, encodeLength } from '#src/trust/messages.ts';
import type { ByteReader } from '#src/trust/reader.ts';
import { COALESCE_BYTES, FRAME_LIMIT_BYTES, IN_FLIGHT_LIMIT_BYTES } from './limits.ts';

/**
 * A body on the wire: frames of a 4-byte big-endian length and that many bytes, ended by a length of 0, after which a
 * one-way body has its SHA-256. A length of 2^32-1 has no bytes and only says that the sender is alive.
 */
const DIGEST_BYTES = 32;
const LENGTH_BYTES = 4;
const END = encodeLength(0);
const SIGN_OF_LIFE = encodeLength(ALIVE);

/** Calls back when `out` has room again, at once if it has, or with the reason why it never will. */
export function onRoom(out: Writable, peer: string, done: (error?: Error) => void): void {
  const failure = (): Error => out.errored ?? unreachable(peer, 'the connection is closed');
  if (out.destroyed || out.writableEnded) {
    done(failure());
    return;
  }
  if (out.writableLength <= IN_FLIGHT_LIMIT_BYTES) {
    done();
    return;
  }
  const settle = (): void => {
    out.off('drain', settle);
    out.off('close', settle);
    if (out.destroyed) done(failure());
    else done();
  };
  out.on('drain', settle);
  out.on('close', settle);
}

export class BodyWriter {
  readonly #out: Writable;
  readonly #peer: string;
  readonly #hash: Hash | undefined;
  #pending: Uint8Array[] = [];
  #pending_bytes = 0;
  #quiet = true;
  #ended = false;

  constructor(out: Writable, options: { peer: string; digest: boolean }) {
    this.#out = out;
    this.#peer = options.peer;
    this.#hash = options.digest ? createHash('sha256') : undefined;
  }

  /** Takes a piece, which must not change afterwards. Wait for the promise, if there is one, before the next. */
  write(chunk: Uint8Array): Promise<void> | undefined {
    this.add(chunk);
    if (this.#out.writableLength <= IN_FLIGHT_LIMIT_BYTES && !this.#out.destroyed) return undefined;
    return new Promise<void>((resolve, reject) => {
      onRoom(this.#out, this.#peer, (error) => (error === undefined ? resolve() : reject(error)));
    });
  }

  /** As write, without a look at whether there is room. */
  add(chunk: Uint8Array): void {
    this.#hash?.update(chunk);
    for (let offset = 0; offset < chunk.length; ) {
      const room = FRAME_LIMIT_BYTES - this.#pending_bytes;
      const part = offset === 0 && chunk.length <= room ? chunk : chunk.subarray(offset, offset + room);
      this.#pending.push(part);
      this.#pending_bytes += part.length;
      offset += part.length;
      if (this.#pending_bytes >= COALESCE_BYTES) this.flush();
    }
  }

  /** Sends what was held back to be sent together. */
  flush(): void {
    if (this.#pending_bytes === 0) return;
    const parts = this.#pending;
    this.#out.cork();
    this.#out.write(encodeLength(this.#pending_bytes));
    for (const part of parts) this.#out.write(part);
    this.#out.uncork();
    this.#pending = [];
    this.#pending_bytes = 0;
    this.#quiet = false;
  }

  /** Called at intervals; sends what waits, or a sign of life when nothing was sent since the last call. */
  tick(): void {
    if (this.#ended || this.#out.destroyed) return;
    this.flush();
    if (this.#quiet && this.#out.writableLength === 0) this.#out.write(SIGN_OF_LIFE);
    this.#quiet = true;
  }

  end(): void {
    this.flush();
    this.#ended = true;
    this.#out.cork();
    this.#out.write(END);
    if (this.#hash !== undefined) this.#out.write(this.#hash.digest());
    this.#out.uncork();
  }
}

/** There is nothing now, but there will be, or an end. */
export const LATER = Symbol('later');

export class BodyReader {
  readonly #reader: ByteReader;
  readonly #hash: Hash | undefined;
  /** A length or a digest, as far as it has come. */
  readonly #gathered = Buffer.alloc(DIGEST_BYTES);
  #gathered_bytes = 0;
  #missing = 0;
  #digestFollows = false;
  #ended = false;

  constructor(reader: ByteReader, options: { digest: boolean }) {
    this.#reader = reader;
    this.#hash = options.digest ? createHash('sha256') : undefined;
  }

  get ended(): boolean {
    return this.#ended;
  }

  /** The next bytes; undefined at the body's proper end, once its digest was found right. Anything else throws. */
  async next(): Promise<Buffer | undefined> {
    for (;;) {
      const chunk = this.atHand();
      if (chunk !== LATER) return chunk;
      await this.#reader.ready();
    }
  }

  /** As `next`, of what is here already. */
  atHand(): Buffer | undefined | typeof LATER {
    while (this.#missing === 0 && !this.#ended) {
      const part = this.#gather(this.#digestFollows ? DIGEST_BYTES : LENGTH_BYTES);
      if (part === LATER) return LATER;
      if (this.#digestFollows) this.#finish(part);
      else this.#begin(part.readUInt32BE());
    }
    if (this.#ended) return undefined;
    const chunk = this.#reader.atHand(this.#missing);
    if (chunk === undefined) return this.#later();
    this.#missing -= chunk.length;
    this.#hash?.update(chunk);
    return chunk;
  }

  whenReady(callback: (error?: Error) => void): void {
    this.#reader.whenReady(callback);
  }

  async *chunks(): AsyncGenerator<Buffer, void, undefined> {
    for (let chunk = await this.next(); chunk !== undefined; chunk = await this.next()) yield chunk;
  }

  #later(): typeof LATER {
    if (this.#reader.over()) throw this.#reader.truncated();
    return LATER;
  }

  /** Exactly so many bytes, which may come in pieces; valid until it is called again. */
  #gather(count: number): Buffer | typeof LATER {
    while (this.#gathered_bytes < count) {
      const part = this.#reader.atHand(count - this.#gathered_bytes);
      if (part === undefined) return this.#later();
      this.#gathered_bytes += part.copy(this.#gathered, this.#gathered_bytes);
      giveBack(part);
    }
    this.#gathered_bytes = 0;
    return this.#gathered.subarray(0, count);
  }

  #begin(length: number): void {
    if (length === ALIVE) return;
    if (length > FRAME_LIMIT_BYTES) {
      throw malformed(this.#reader.from, `a frame of ${length} bytes, where ${FRAME_LIMIT_BYTES} are allowed`);
    }
    this.#missing = length;
    if (length > 0) return;
    if (this.#hash === undefined) this.#ended = true;
    else this.#digestFollows = true;
  }

  #finish(digest: Buffer): void {
    if (this.#hash === undefined || !digest.equals(this.#hash.digest())) {
      throw new UmsError('UMS_E_IMAGE_CORRUPT', {
        message: `The data that came from ${this.#reader.from} is not what was sent`,
        fault: 'network',
        mend: 'Try again; if it happens again, test the memory of both systems.',
      });
    }
    this.#ended = true;
  }
}
