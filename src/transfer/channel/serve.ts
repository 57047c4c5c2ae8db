import type { Duplex } from 'node:stream';
import type { TLSSocket } from 'node:tls';
import { z } from 'zod';
import { toUmsError, UmsError } from '#src/telemetry/errors.ts';
import type { Logger } from '#src/telemetry/log.ts';
import { asConnectionFailure, truncated } from '#src/trust/failures.ts';
import { ALIVE, encodeLength, encodeMessage, parseWith, receiveMessage } from '#src/trust/messages.ts';
import { ByteReader } from '#src/trust/reader.ts';
import { BodyReader } from './frames.ts';
import {
  aliveInterval_ms,
  DATA_PROTOCOL,
  HEADER_LIMIT_BYTES,
  HTTP_PROTOCOL,
  type PeerLimits,
  TRAILER_LIMIT_BYTES,
} from './limits.ts';
import { PeerStream } from './stream.ts';
import { wireBytes } from './wire.ts';

export interface StreamContext<H> {
  /** Name of the authenticated peer. */
  readonly peer: string;
  readonly header: H;
  /** Aborted when the connection ends, for whatever reason. */
  readonly signal: AbortSignal;
  /** Bytes on the wire so far, both directions. */
  wire(): number;
}

export interface OnewayContext<H> extends StreamContext<H> {
  /** To be read to its end: only then is it known to be whole and unaltered. */
  readonly body: AsyncIterable<Buffer>;
}

/** Gives the trailer that the sender gets; what it throws goes to the sender as an error. */
export type OnewayHandler<H> = (context: OnewayContext<H>) => unknown;
/** The stream is the handler's from here on; it is destroyed when the handler throws. */
export type DuplexHandler<H> = (context: StreamContext<H>, stream: Duplex) => void | Promise<void>;

interface Connection {
  readonly socket: TLSSocket;
  readonly reader: ByteReader;
  readonly peer: string;
  readonly signal: AbortSignal;
  readonly log: Logger;
}
export type StreamKind = (connection: Connection, header: unknown) => Promise<void>;

/** How long a sender may go on after it was told that its stream failed. */
const LINGER_MS = 5000;
const ACCEPT = encodeMessage({ ok: true }, HEADER_LIMIT_BYTES);
const SIGN_OF_LIFE = encodeLength(ALIVE);
const anyHeader = z.looseObject({ kind: z.string().min(1).max(64) });

/** What a peer that is not let in gets to read, in the form that it expects; undefined when none fits. */
export function refusalNotice(socket: TLSSocket, reason: UmsError): Buffer | undefined {
  const body = { error: wireReport(reason) };
  if (socket.alpnProtocol === DATA_PROTOCOL) return encodeMessage(body, HEADER_LIMIT_BYTES);
  if (socket.alpnProtocol !== HTTP_PROTOCOL) return undefined;
  const text = Buffer.from(JSON.stringify(body));
  const head = `HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: ${text.length}\r\nConnection: close\r\n\r\n`;
  return Buffer.concat([Buffer.from(head), text]);
}

/** A defect's stack stays in the log of the system that has it. */
function wireReport(error: UmsError): ReturnType<UmsError['toReport']> {
  const report = error.toReport();
  if (error.code !== 'UMS_E_INTERNAL') return report;
  return { ...report, detail: '' };
}

export interface ServeOptions {
  readonly kinds: ReadonlyMap<string, StreamKind>;
  readonly limits: PeerLimits;
  readonly log: Logger;
}

/** Takes one data connection from its header to its end. */
export async function serveStream(socket: TLSSocket, peer: string, options: ServeOptions): Promise<void> {
  const failure = (error: Error): UmsError => {
    const cause = asConnectionFailure(peer, error);
    // A reset in the middle of a body and an end in the middle of it are the same to whoever waits for the data.
    return cause.code === 'UMS_E_PEER_UNREACHABLE' ? truncated(peer) : cause;
  };
  const reader = new ByteReader(socket, { from: peer, idle_ms: options.limits.idle_ms, failure });
  const controller = new AbortController();
  socket.once('close', () => controller.abort());
  const log = options.log.child({ peer });
  try {
    const header = await receiveMessage(reader, HEADER_LIMIT_BYTES, anyHeader);
    const kind = options.kinds.get(header.kind);
    if (kind === undefined) {
      throw new UmsError('UMS_E_PEER_VERSION', {
        message: `Streams of kind ${header.kind} are not known here`,
        fault: 'network',
        mend: 'Bring both systems to the same version of ums.',
      });
    }
    await kind({ socket, reader, peer, signal: controller.signal, log }, header);
  } catch (error) {
    const failure = toUmsError(error);
    log.warn({ code: failure.code, reason: failure.message, detail: failure.detail }, 'data stream failed');
    finish(socket, reader, encodeMessage({ error: wireReport(failure) }, TRAILER_LIMIT_BYTES));
  }
}

export function onewayKind<H>(schema: z.ZodType<H>, handler: OnewayHandler<H>, limits: PeerLimits): StreamKind {
  return async ({ socket, reader, peer, signal }, raw) => {
    const header = parseWith(schema, raw, peer);
    socket.write(ACCEPT);
    const timer = setInterval(() => {
      if (!socket.destroyed && socket.writableLength === 0) socket.write(SIGN_OF_LIFE);
    }, aliveInterval_ms(limits.idle_ms));
    try {
      const body = new BodyReader(reader, { digest: true });
      const trailer = await handler({ peer, header, signal, wire: () => wireBytes(socket), body: body.chunks() });
      if (!body.ended) throw new Error('the handler of a stream did not read it to its end');
      finish(socket, reader, encodeMessage({ ok: true, trailer: trailer ?? null }, TRAILER_LIMIT_BYTES));
    } finally {
      clearInterval(timer);
    }
  };
}

export function duplexKind<H>(
  schema: z.ZodType<H>,
  handler: DuplexHandler<H>,
  limits: PeerLimits,
  admit: ((peer: string, header: H) => void | Promise<void>) | undefined,
): StreamKind {
  return async ({ socket, reader, peer, signal, log }, raw) => {
    const header = parseWith(schema, raw, peer);
    await admit?.(peer, header);
    socket.write(ACCEPT);
    const stream = new PeerStream(socket, reader, { peer, idle_ms: limits.idle_ms });
    stream.on('error', (error) => log.debug({ reason: error.message }, 'data stream broke'));
    try {
      await handler({ peer, header, signal, wire: () => wireBytes(socket) }, stream);
    } catch (error) {
      const failure = toUmsError(error);
      log.warn({ code: failure.code, reason: failure.message, detail: failure.detail }, 'data stream failed');
      stream.destroy(failure);
    }
  };
}

/** Says the last word and lets the other side read it, whatever it is still sending. */
function finish(socket: TLSSocket, reader: ByteReader, message: Buffer): void {
  if (socket.destroyed) return;
  reader.discard();
  socket.end(message);
  const timer = setTimeout(() => socket.destroy(), LINGER_MS);
  socket.once('close', () => clearTimeout(timer));
}
