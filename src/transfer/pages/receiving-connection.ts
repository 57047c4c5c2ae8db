import { once } from 'node:events';
import { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { toUmsError, type UmsError } from '#src/telemetry/errors.ts';
import { giveBack } from '#src/trust/slabs.ts';
import { PeerStream } from '../channel/stream.ts';
import { type ControlParts, encodeControl, type Frame, FrameParser } from './frames.ts';
import { decodeGreeting, encodeFailure, type Greeting } from './messages.ts';

/** What may wait for a peer that does not read. */
const UNREAD_LIMIT_BYTES = 16 * 1024 * 1024;

/** One stream of a sender as the receiver has it: frames in, acknowledgements and questions out. */
export class ReceivingConnection {
  readonly index: number;
  /** Resolves when the stream has ended or broken. */
  readonly ended: Promise<void>;
  failure: unknown;
  readonly #stream: Duplex;
  readonly #parser: FrameParser;
  #handled = 0;
  #acknowledged = 0;
  #seq = 0;
  #greeted = false;
  #deaf = false;

  constructor(index: number, stream: Duplex, handle: (frame: Frame) => void) {
    this.index = index;
    this.#stream = stream;
    this.#parser = new FrameParser((frame) => {
      if (this.#deaf) return;
      handle(frame);
      this.#handled = frame.seq;
    });
    const ended = Promise.withResolvers<void>();
    this.ended = ended.promise;
    if (stream instanceof PeerStream) stream.deliver((chunk) => this.#take(chunk));
    else {
      stream.on('data', (chunk: Buffer) => {
        this.#take(chunk);
        if (stream instanceof Socket) giveBack(chunk);
      });
    }
    stream.on('error', (error) => {
      this.failure ??= error;
    });
    stream.once('end', () => stream.end());
    stream.once('close', () => ended.resolve());
    if (stream.destroyed) ended.resolve();
  }

  /** What the first frame says; a second greeting is refused. */
  greeting(frame: Frame): Greeting {
    if (this.#greeted) throw new Error('a connection greeted twice');
    this.#greeted = true;
    return decodeGreeting(frame.meta);
  }

  send(parts: ControlParts): void {
    if (this.#deaf || this.#stream.destroyed || this.#stream.writableEnded) return;
    this.#seq += 1;
    this.#stream.write(encodeControl(parts, this.#seq));
    if (this.#stream.writableLength > UNREAD_LIMIT_BYTES) this.destroy();
  }

  /** Sends a frame with a payload and waits until there is room for another; false when there never will be. */
  async sendWithPayload(head: (seq: number) => Buffer, payload: Buffer): Promise<boolean> {
    if (this.#deaf || this.#stream.destroyed || this.#stream.writableEnded) return false;
    this.#seq += 1;
    this.#stream.write(head(this.#seq));
    if (this.#stream.write(payload)) return true;
    const gone = new AbortController();
    try {
      await Promise.race([once(this.#stream, 'drain', { signal: gone.signal }), this.ended]);
    } catch {
      return false;
    } finally {
      gone.abort();
    }
    return !this.#stream.destroyed;
  }

  /** Says why nothing more will be taken, and ends the connection. */
  fail(error: UmsError): void {
    this.send({ type: 'fail', meta: encodeFailure(error) });
    this.#deaf = true;
    this.#stream.end();
    // What still comes is thrown away, so that the reason can be read at the other end.
    const timer = setTimeout(() => this.#stream.destroy(), 2000);
    this.#stream.once('close', () => clearTimeout(timer));
  }

  destroy(): void {
    this.#deaf = true;
    this.#stream.destroy();
  }

  #take(chunk: Buffer): void {
    if (this.#deaf) return;
    try {
      this.#parser.push(chunk);
    } catch (thrown) {
      this.failure ??= thrown;
      const error = toUmsError(thrown);
      // A full or broken store is for the sender to know; what came garbled is sent again over a new connection.
      if (error.fault === 'destination' || error.code === 'UMS_E_INTERNAL') this.fail(error);
      else this.destroy();
      return;
    }
    if (this.#handled === this.#acknowledged) return;
    this.#acknowledged = this.#handled;
    this.send({ type: 'ack', argument: this.#handled });
  }
}
