import type { Readable } from 'node:stream';
import { asConnectionFailure, silent, truncated } from './failures.ts';

export interface ReaderOptions {
  /** Bytes held before the source is paused. */
  readonly highWater_bytes?: number;
  /** Milliseconds that a wait for the next byte may last; 0 for no limit. */
  readonly idle_ms?: number;
  /** Who is at the other end, for messages. */
  readonly from: string;
  /** The error for a source that ends inside a message. */
  readonly truncated?: (from: string) => Error;
  /** What the reader throws when the source fails. */
  readonly failure?: (error: Error) => Error;
}

/** Takes bytes from a stream on demand, without copying what it hands on, and holds no more than its limit. */
export class ByteReader {
  readonly #source: Readable;
  readonly #highWater_bytes: number;
  readonly #idle_ms: number;
  readonly #from: string;
  readonly #truncated: (from: string) => Error;
  readonly #translate: (error: Error) => Error;
  readonly #queue: Buffer[] = [];
  #queued_bytes = 0;
  #ended = false;
  #failure: Error | undefined;
  #wake: ((error?: Error) => void) | undefined;
  #silence: NodeJS.Timeout | undefined;

  constructor(source: Readable, options: ReaderOptions) {
    this.#source = source;
    this.#highWater_bytes = options.highWater_bytes ?? 256 * 1024;
    this.#idle_ms = options.idle_ms ?? 0;
    this.#from = options.from;
    this.#truncated = options.truncated ?? truncated;
    this.#translate = options.failure ?? ((error) => asConnectionFailure(this.#from, error));
    if (source.errored !== null) this.#onError(source.errored);
    this.#ended = source.destroyed || source.readableEnded;
    source.on('data', this.#onData);
    source.once('end', this.#onEnd);
    source.once('close', this.#onEnd);
    source.on('error', this.#onError);
  }

  get from(): string {
    return this.#from;
  }

  truncated(): Error {
    return this.#truncated(this.#from);
  }

  /** The next bytes that are here already, at most `limit`; undefined when there are none. */
  atHand(limit: number): Buffer | undefined {
    const first = this.#queue[0];
    if (first === undefined) return undefined;
    let taken = first;
    if (first.length <= limit) this.#queue.shift();
    else {
      taken = first.subarray(0, limit);
      this.#queue[0] = first.subarray(limit);
    }
    this.#queued_bytes -= taken.length;
    if (this.#queued_bytes < this.#highWater_bytes && this.#source.isPaused()) this.#source.resume();
    return taken;
  }

  /** Whether the source has ended and nothing of it is left. Throws what it failed with, once nothing else is left. */
  over(): boolean {
    if (this.#queue.length > 0) return false;
    if (this.#failure !== undefined) throw this.#failure;
    return this.#ended;
  }

  /** Calls back when there are bytes, or the end or a failure; with the reason when neither comes within the limit. */
  whenReady(callback: (error?: Error) => void): void {
    this.#wake = callback;
    if (this.#idle_ms === 0) return;
    // One timer for all waits, because there may be one for every few kilobytes.
    if (this.#silence === undefined) this.#silence = setTimeout(this.#onSilence, this.#idle_ms).unref();
    else this.#silence.refresh();
  }

  /** As `whenReady`, for who can wait. */
  ready(): Promise<void> {
    return new Promise<void>((resolve, reject) => {
      this.whenReady((error) => (error === undefined ? resolve() : reject(error)));
    });
  }

  /** The next bytes, at most `limit`; undefined at the end of the source. */
  async upTo(limit: number): Promise<Buffer | undefined> {
    // One pass per wake-up; each either brings bytes, the end or a failure, and the idle limit bounds the wait.
    for (;;) {
      const taken = this.atHand(limit);
      if (taken !== undefined) return taken;
      if (this.over()) return undefined;
      await this.ready();
    }
  }

  /** Exactly `count` bytes; undefined when the source ended before the first of them. */
  async take(count: number): Promise<Buffer | undefined> {
    const parts: Buffer[] = [];
    let missing = count;
    while (missing > 0) {
      const part = await this.upTo(missing);
      if (part === undefined) {
        if (missing === count) return undefined;
        throw this.truncated();
      }
      missing -= part.length;
      if (part.length === count) return part;
      parts.push(part);
    }
    return Buffer.concat(parts, count);
  }

  /** Throws away what is held and goes on doing so, for a peer that must be let finish before the connection closes. */
  discard(): void {
    this.#queue.length = 0;
    this.#queued_bytes = 0;
    this.#source.off('data', this.#onData);
    this.#stopTimer();
    this.#source.resume();
  }

  readonly #onData = (chunk: Buffer): void => {
    this.#queue.push(chunk);
    this.#queued_bytes += chunk.length;
    if (this.#queued_bytes >= this.#highWater_bytes) this.#source.pause();
    this.#notify();
  };

  readonly #onEnd = (): void => {
    this.#ended = true;
    this.#stopTimer();
    this.#notify();
  };

  readonly #onError = (error: Error): void => {
    this.#failure ??= this.#translate(error);
    this.#stopTimer();
    this.#notify();
  };

  readonly #onSilence = (): void => {
    // Where nobody waits, nobody minds: the next wait begins anew.
    this.#notify(silent(this.#from, this.#idle_ms));
  };

  #notify(error?: Error): void {
    const wake = this.#wake;
    this.#wake = undefined;
    wake?.(error);
  }

  #stopTimer(): void {
    clearTimeout(this.#silence);
    this.#silence = undefined;
  }
}
