import { setTimeout as delay } from 'node:timers/promises';
import type { Duplex } from 'node:stream';
import { toUmsError, type UmsError } from '#src/telemetry/errors.ts';
import { encodeControl, encodeHead, Flag, type Frame, FrameParser, type FrameParts } from './frames.ts';
import { decodeFailure, encodeGreeting } from './messages.ts';
import { pagesFailed } from './model.ts';

/** A frame on the way: what is to be done when it has arrived, was refused, or was lost with its connection. */
export interface UnderWay {
  readonly bytes: number;
  arrived(): void;
  /** To be sent again on this same connection or the one that replaces it. */
  again(refused: boolean): void;
}

export interface Outgoing {
  readonly parts: Omit<FrameParts, 'digest'> & { readonly digest?: Buffer };
  readonly payload?: Buffer;
  readonly under: UnderWay;
}

/** What a connection asks of the sender it belongs to. */
export interface LinkHost {
  readonly session: string;
  readonly open: (index: number, signal: AbortSignal) => Promise<Duplex>;
  readonly reconnect_ms: number;
  readonly stall_ms: number;
  readonly signal: AbortSignal;
  /** The next frame for this connection; undefined when there is none now, a number of milliseconds to wait for one. */
  next(link: SenderLink): Outgoing | number | undefined;
  /** A frame that the connection does not deal with itself. */
  received(link: SenderLink, frame: Frame): void;
  acknowledged(link: SenderLink, bytes: number): void;
  waited(): void;
  linkChanged(): void;
  failed(error: UmsError): void;
}

const START_ATTEMPTS = 4;
const RETRY_FIRST_MS = 20;
const RETRY_MOST_MS = 1000;
/** Connections that break without one frame having arrived; more of them in a row are no accident. */
const FUTILE_MAX = 12;
/** A break that no other connection to the same system would mend. */
const HOPELESS = new Set(['UMS_E_PEER_REVOKED', 'UMS_E_PEER_UNPAIRED', 'UMS_E_PEER_EXPIRED', 'UMS_E_PEER_VERSION']);

/** One connection of a sender, kept up: opened, opened again after a break, and what was lost sent again. */
export class SenderLink {
  readonly index: number;
  /** Spaces whose number the receiver was told on the present stream. */
  readonly declared = new Set<number>();
  readonly #host: LinkHost;
  readonly #unacknowledged: { seq: number; refused: boolean; under: UnderWay }[] = [];
  #stream: Duplex | undefined;
  #up = false;
  #seq = 0;
  #epoch = 0;
  #heard_at = 0;
  #futile = 0;
  #ended = false;
  #wake: (() => void) | undefined;
  #life: Promise<void> = Promise.resolve();
  reconnects = 0;

  constructor(index: number, host: LinkHost) {
    this.index = index;
    this.#host = host;
  }

  get up(): boolean {
    return this.#up;
  }

  get bytesUnderWay(): number {
    return this.#unacknowledged.reduce((sum, { under }) => sum + under.bytes, 0);
  }

  get idle(): boolean {
    return this.#unacknowledged.length === 0;
  }

  /** Opens the connection for the first time; after that it keeps itself up. */
  async start(wantsCache: boolean): Promise<void> {
    for (let attempt = 1; ; attempt += 1) {
      // A system that cannot be reached at all is told at once; a connection that broke is tried again.
      const stream = await this.#open();
      try {
        await this.#greet(stream, wantsCache);
        this.#life = this.#live(stream);
        return;
      } catch (error) {
        stream.destroy();
        const refused = this.#host.signal.aborted || this.#ended || toUmsError(error).fault === 'destination';
        if (refused || attempt >= START_ATTEMPTS) throw error;
      }
    }
  }

  /** There may be something to send. */
  wake(): void {
    const wake = this.#wake;
    this.#wake = undefined;
    wake?.();
  }

  /** Gives up a connection on which nothing came although something should have. */
  checkStall(): void {
    if (!this.#up || this.idle || performance.now() - this.#heard_at < this.#host.stall_ms) return;
    this.#stream?.destroy(pagesFailed('the destination stopped answering'));
  }

  async close(graceful: boolean): Promise<void> {
    this.#ended = true;
    const stream = this.#stream;
    if (graceful) stream?.end();
    else stream?.destroy();
    const timer = setTimeout(() => stream?.destroy(), 1000);
    this.wake();
    await this.#life;
    clearTimeout(timer);
  }

  async #open(): Promise<Duplex> {
    const stream = await this.#host.open(this.index, this.#host.signal);
    // A late error always has somebody who hears it.
    stream.on('error', () => undefined);
    return stream;
  }

  async #connect(): Promise<Duplex> {
    const stream = await this.#open();
    try {
      await this.#greet(stream, false);
    } catch (error) {
      stream.destroy();
      throw error;
    }
    return stream;
  }

  async #greet(stream: Duplex, wantsCache: boolean): Promise<void> {
    const answered = Promise.withResolvers<void>();
    this.#epoch = Math.max(this.#epoch + 1, Date.now());
    this.#seq = 0;
    const greeting = { session: this.#host.session, epoch: this.#epoch, index: this.index, wantsCache };
    const meta = encodeGreeting(greeting);
    let greeted = false;
    const parser = new FrameParser((frame) => {
      if (greeted) {
        this.#take(frame);
        return;
      }
      if (frame.type === 'fail') throw decodeFailure(frame.meta);
      if (frame.type !== 'hello' || (frame.flags & Flag.reply) === 0 || !frame.meta.equals(meta)) {
        throw pagesFailed('the destination did not answer a greeting');
      }
      greeted = true;
      this.#began(stream);
      answered.resolve();
    });
    stream.on('data', (chunk: Buffer) => {
      if (stream.destroyed) return;
      try {
        parser.push(chunk);
      } catch (error) {
        answered.reject(error);
        stream.destroy(toUmsError(error));
      }
    });
    stream.once('end', () => {
      if (!this.#ended) stream.destroy(pagesFailed('the destination ended the connection'));
    });
    stream.once('close', () => answered.reject(stream.errored ?? pagesFailed('the connection broke')));
    const mute = pagesFailed('the destination does not greet');
    const timer = setTimeout(() => stream.destroy(mute), this.#host.stall_ms);
    this.#send(stream, { type: 'hello', meta });
    try {
      await answered.promise;
    } finally {
      clearTimeout(timer);
    }
  }

  #began(stream: Duplex): void {
    this.#stream = stream;
    this.#up = true;
    this.#heard_at = performance.now();
    this.declared.clear();
    this.#host.linkChanged();
  }

  async #live(first: Duplex): Promise<void> {
    let stream: Duplex | undefined = first;
    while (stream !== undefined) {
      await this.#serve(stream);
      this.#up = false;
      this.#stream = undefined;
      const lost = this.#unacknowledged.splice(0);
      for (const { under, refused } of lost) under.again(refused);
      if (this.#ended || this.#host.signal.aborted) return;
      this.#host.linkChanged();
      stream = await this.#reconnect(stream.errored);
    }
  }

  async #reconnect(reason: Error | null): Promise<Duplex | undefined> {
    const deadline = performance.now() + this.#host.reconnect_ms;
    let last: unknown = reason;
    this.#futile += 1;
    for (let wait_ms = RETRY_FIRST_MS; ; wait_ms = Math.min(wait_ms * 2, RETRY_MOST_MS)) {
      const error = last instanceof Error ? toUmsError(last) : undefined;
      const hopeless = error !== undefined && HOPELESS.has(error.code);
      if (hopeless || this.#futile > FUTILE_MAX || performance.now() >= deadline) {
        this.#host.failed(hopeless ? error : lostForGood(last, this.#host.reconnect_ms));
        return undefined;
      }
      try {
        await delay(wait_ms, undefined, { signal: this.#host.signal });
        const stream = await this.#connect();
        if (this.#ended || this.#host.signal.aborted) {
          stream.destroy();
          return undefined;
        }
        this.reconnects += 1;
        return stream;
      } catch (thrown) {
        if (this.#ended || this.#host.signal.aborted) return undefined;
        last = thrown;
      }
    }
  }

  /** Sends what there is until the stream has broken or ended. */
  async #serve(stream: Duplex): Promise<void> {
    const closed = new Promise<void>((resolve) => {
      if (stream.destroyed) resolve();
      else stream.once('close', resolve);
    });
    void closed.then(() => this.wake());
    while (!stream.destroyed && !this.#ended) {
      const next = this.#host.next(this);
      if (typeof next === 'object') {
        if (!this.#send(stream, next.parts, next.payload, next.under)) {
          this.#host.waited();
          await Promise.race([drained(stream), closed]);
        }
        // Acknowledgements and demands get their turn between any two frames.
        await new Promise((resolve) => setImmediate(resolve));
      } else await this.#rest(next);
    }
    await closed;
  }

  /** Waits for a call of `wake`, at most so long. */
  async #rest(limit_ms: number | undefined): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = limit_ms === undefined ? undefined : setTimeout(resolve, limit_ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #send(stream: Duplex, parts: Outgoing['parts'], payload?: Buffer, under?: UnderWay): boolean {
    this.#seq += 1;
    const digest = parts.digest;
    const head = digest === undefined ? encodeControl(parts, this.#seq) : encodeHead({ ...parts, digest }, this.#seq);
    if (under !== undefined) this.#unacknowledged.push({ seq: this.#seq, refused: false, under });
    if (payload === undefined || payload.length === 0) return stream.write(head);
    stream.cork();
    stream.write(head);
    const room = stream.write(payload);
    stream.uncork();
    return room;
  }

  #take(frame: Frame): void {
    this.#heard_at = performance.now();
    if (frame.type === 'fail') {
      this.#host.failed(decodeFailure(frame.meta));
      return;
    }
    if (frame.type === 'nak') {
      const refused = this.#unacknowledged.find((entry) => entry.seq === frame.argument);
      if (refused === undefined) throw pagesFailed('the destination refused what was not sent');
      refused.refused = true;
      return;
    }
    if (frame.type !== 'ack') {
      this.#host.received(this, frame);
      return;
    }
    if (frame.argument > this.#seq) throw pagesFailed('the destination acknowledged what was not sent');
    this.#settle(frame.argument);
  }

  #settle(seq: number): void {
    let bytes = 0;
    while ((this.#unacknowledged[0]?.seq ?? Number.POSITIVE_INFINITY) <= seq) {
      const entry = this.#unacknowledged.shift();
      if (entry === undefined) break;
      bytes += entry.under.bytes;
      if (entry.refused) entry.under.again(true);
      else {
        this.#futile = 0;
        entry.under.arrived();
      }
    }
    this.#host.acknowledged(this, bytes);
  }

  /** The request among the unacknowledged frames that an answer belongs to. */
  pending(seq: number): UnderWay | undefined {
    return this.#unacknowledged.find((entry) => entry.seq === seq)?.under;
  }
}

function drained(stream: Duplex): Promise<void> {
  return new Promise((resolve) => {
    stream.once('drain', resolve);
  });
}

function lostForGood(last: unknown, limit_ms: number): UmsError {
  const why = last instanceof Error ? last.message : 'the connection broke';
  return pagesFailed(`the link broke and did not come back within ${Math.round(limit_ms / 1000)} s (${why})`);
}
