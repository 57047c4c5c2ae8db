import { Duplex } from 'node:stream';
import type { TLSSocket } from 'node:tls';
import { asConnectionFailure, unreachable } from '#src/trust/failures.ts';
import type { ByteReader } from '#src/trust/reader.ts';
import { giveBack } from '#src/trust/slabs.ts';
import { BodyReader, BodyWriter, LATER, onRoom } from './frames.ts';
import { IN_FLIGHT_LIMIT_BYTES, aliveInterval_ms } from './limits.ts';

export interface PeerStreamOptions {
  readonly peer: string;
  readonly idle_ms: number;
}

/**
 * Bytes both ways over a data connection, each direction ended on its own. Inside, both directions are framed: so an
 * end that was meant differs from a connection that broke, and a peer that went silent is noticed on an idle stream.
 */
export class PeerStream extends Duplex {
  readonly #socket: TLSSocket;
  readonly #peer: string;
  readonly #body: BodyReader;
  readonly #writer: BodyWriter;
  readonly #timer: NodeJS.Timeout;
  #written = false;
  #waiting = false;
  #taker: ((chunk: Buffer) => void) | undefined;

  constructor(socket: TLSSocket, reader: ByteReader, options: PeerStreamOptions) {
    super({ allowHalfOpen: true, writableHighWaterMark: IN_FLIGHT_LIMIT_BYTES });
    // Opened ahead of its use, it may fail or be cancelled before anybody listens; whoever uses it then finds it ended.
    this.on('error', () => undefined);
    this.#socket = socket;
    this.#peer = options.peer;
    this.#body = new BodyReader(reader, { digest: false });
    this.#writer = new BodyWriter(socket, { peer: options.peer, digest: false });
    this.#timer = setInterval(() => this.#writer.tick(), aliveInterval_ms(options.idle_ms));
    socket.on('error', (error) => this.destroy(asConnectionFailure(this.#peer, error)));
    socket.once('close', () => {
      // What was received before stays readable when only that is missing; a broken sending side ends all.
      if (!this.#written) this.destroy(unreachable(this.#peer, 'the connection closed'));
    });
  }

  /**
   * Hands each piece straight to `take`, which keeps up by being done when it returns and may keep nothing of the piece: its
   * memory is given back then. Nothing goes through the queue and the events of a stream; the end, errors and all that is
   * sent are as of any other.
   */
  deliver(take: (chunk: Buffer) => void): void {
    this.#taker = take;
    this.resume();
  }

  override _read(): void {
    if (!this.#waiting) this.#pump();
  }

  /**
   * Hands on what is here, without a promise or a timer for each piece: TLS brings 16 KiB at a time, a hundred thousand
   * times for a large service.
   */
  #pump(): void {
    try {
      for (let wanted = true; wanted && !this.destroyed; ) {
        const chunk = this.#body.atHand();
        if (chunk === LATER) return this.#wait();
        if (chunk === undefined || this.#taker === undefined) wanted = this.push(chunk ?? null) && chunk !== undefined;
        else {
          this.#taker(chunk);
          giveBack(chunk);
        }
      }
    } catch (error) {
      this.destroy(asConnectionFailure(this.#peer, error));
    }
  }

  #wait(): void {
    this.#waiting = true;
    this.#body.whenReady((error) => {
      this.#waiting = false;
      if (error === undefined) this.#pump();
      else this.destroy(asConnectionFailure(this.#peer, error));
    });
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, callback: (error?: Error | null) => void): void {
    this.#send([chunk], callback);
  }

  override _writev(chunks: readonly { readonly chunk: Buffer }[], callback: (error?: Error | null) => void): void {
    this.#send(
      chunks.map((entry) => entry.chunk),
      callback,
    );
  }

  override _final(callback: (error?: Error | null) => void): void {
    try {
      this.#writer.end();
      this.#written = true;
      callback();
    } catch (error) {
      callback(asConnectionFailure(this.#peer, error));
    }
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    clearInterval(this.#timer);
    if (error === null && this.#written && this.#body.ended) this.#socket.end();
    else this.#socket.destroy();
    callback(error);
  }

  #send(chunks: readonly Buffer[], callback: (error?: Error | null) => void): void {
    for (const chunk of chunks) this.#writer.add(chunk);
    this.#writer.flush();
    onRoom(this.#socket, this.#peer, (error) =>
      callback(error === undefined ? null : asConnectionFailure(this.#peer, error)),
    );
  }
}
