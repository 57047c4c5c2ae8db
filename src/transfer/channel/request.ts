import { type Agent, request as httpsRequest } from 'node:https';
import type { IncomingMessage } from 'node:http';
import { TLSSocket } from 'node:tls';
import { z } from 'zod';
import { errorReportSchema, UmsError } from '#src/telemetry/errors.ts';
import { asConnectionFailure, malformed, silent, unreachable } from '#src/trust/failures.ts';
import { parseWith } from '#src/trust/messages.ts';
import type { PeerRecord } from '#src/trust/store.ts';
import type { Trust } from '#src/trust/trust.ts';
import { cancelled, speaksFor, tlsOptions } from './connect.ts';
import { BODY_LIMIT_BYTES, HTTP_HEADER_LIMIT_BYTES, HTTP_PROTOCOL } from './limits.ts';

/** To be such that the peer may get it twice: the channel repeats one that met a connection just being closed. */
export interface PeerRequest<T> {
  readonly method: 'GET' | 'POST' | 'PUT' | 'DELETE';
  readonly path: string;
  /** Sent as JSON. */
  readonly body?: unknown;
  /** Of the response. */
  readonly schema: z.ZodType<T>;
  /** For the whole exchange; one minute unless told. A silent peer is noticed much sooner. */
  readonly timeout_ms?: number;
  readonly signal?: AbortSignal | undefined;
}

export interface RequestContext {
  readonly trust: Trust;
  /** Brings the check of the peer's name (speaksFor). */
  readonly agent: Agent;
  readonly idle_ms: number;
  readonly onSocket: (socket: TLSSocket) => void;
}

const DEFAULT_TIMEOUT_MS = 60_000;
const errorBody = z.object({ error: errorReportSchema });

export async function exchangeJson<T>(peer: PeerRecord, request: PeerRequest<T>, context: RequestContext): Promise<T> {
  if (request.signal?.aborted === true) throw cancelled(request.signal);
  const payload = request.body === undefined ? undefined : Buffer.from(JSON.stringify(request.body));
  if (payload !== undefined && payload.length > BODY_LIMIT_BYTES) {
    throw new UmsError('UMS_E_PEER_MESSAGE', {
      message: `A request of ${payload.length} bytes to ${peer.name} is over the limit of ${BODY_LIMIT_BYTES}`,
      fault: 'ums',
    });
  }
  const { status, body } = await transmitAgain(peer, request, payload, context);
  const value = parseBody(body, peer.name);
  if (status >= 200 && status < 300) return parseWith(request.schema, value, peer.name);
  const report = errorBody.safeParse(value);
  if (report.success) throw UmsError.fromReport(report.data.error);
  throw malformed(peer.name, `a response with status ${status} and no error of ums in it`);
}

interface RawResponse {
  readonly status: number;
  readonly body: Buffer;
}

/** The connection was one kept open from earlier, and the peer had closed it when the request went out. */
class StaleConnection extends Error {}

/** Peers' requests may be repeated, so one that met a closing connection goes out again over a new one, once. */
async function transmitAgain<T>(
  peer: PeerRecord,
  request: PeerRequest<T>,
  payload: Buffer | undefined,
  context: RequestContext,
): Promise<RawResponse> {
  try {
    return await transmit(peer, request, payload, context, context.agent);
  } catch (error) {
    if (!(error instanceof StaleConnection)) throw error;
    return transmit(peer, request, payload, context, undefined);
  }
}

/** Without an agent the connection is a new one, for this request alone. */
function transmit<T>(
  peer: PeerRecord,
  request: PeerRequest<T>,
  payload: Buffer | undefined,
  context: RequestContext,
  agent: Agent | undefined,
): Promise<RawResponse> {
  const timeout_ms = request.timeout_ms ?? DEFAULT_TIMEOUT_MS;
  return new Promise((resolve, reject) => {
    const call = httpsRequest({
      ...tlsOptions(context.trust, peer, HTTP_PROTOCOL),
      method: request.method,
      path: request.path,
      ...(agent === undefined ? { agent: false, checkServerIdentity: speaksFor(peer.name) } : { agent }),
      maxHeaderSize: HTTP_HEADER_LIMIT_BYTES,
      // Silence on the socket, from the first SYN on; the peer's 102 responses count as signs of life.
      timeout: context.idle_ms,
      headers: {
        accept: 'application/json',
        ...(payload === undefined ? {} : { 'content-type': 'application/json', 'content-length': payload.length }),
      },
    });
    let heard = false;
    const limit = setTimeout(() => call.destroy(tooSlow(peer.name, timeout_ms)), timeout_ms);
    const signal = request.signal;
    const abort = (): void => {
      if (signal !== undefined) call.destroy(cancelled(signal));
    };
    signal?.addEventListener('abort', abort, { once: true });
    const settle = (): void => {
      clearTimeout(limit);
      signal?.removeEventListener('abort', abort);
    };
    call.once('socket', (socket) => {
      if (socket instanceof TLSSocket) context.onSocket(socket);
    });
    call.on('timeout', () => call.destroy(silent(peer.name, context.idle_ms)));
    call.on('error', (error) => {
      settle();
      const closed = 'code' in error && (error.code === 'ECONNRESET' || error.code === 'EPIPE');
      if (closed && call.reusedSocket && !heard) reject(new StaleConnection());
      else reject(asConnectionFailure(peer.name, error));
    });
    // Once the peer said anything, the request was under way and is not repeated.
    call.on('information', () => (heard = true));
    call.on('response', (response) => {
      heard = true;
      collect(response, peer.name).then(
        (body) => {
          settle();
          resolve({ status: response.statusCode ?? 0, body });
        },
        (error: unknown) => {
          settle();
          call.destroy();
          reject(asConnectionFailure(peer.name, error));
        },
      );
    });
    call.end(payload);
  });
}

async function collect(response: IncomingMessage, peer: string): Promise<Buffer> {
  const parts: Buffer[] = [];
  let size_bytes = 0;
  for await (const part of response) {
    if (!(part instanceof Buffer)) throw unreachable(peer, 'the response is not binary');
    size_bytes += part.length;
    if (size_bytes > BODY_LIMIT_BYTES) throw malformed(peer, `a response of more than ${BODY_LIMIT_BYTES} bytes`);
    parts.push(part);
  }
  return Buffer.concat(parts, size_bytes);
}

function parseBody(body: Buffer, peer: string): unknown {
  if (body.length === 0) return undefined;
  try {
    return JSON.parse(body.toString('utf8'));
  } catch {
    throw malformed(peer, 'a response that is not JSON');
  }
}

function tooSlow(peer: string, timeout_ms: number): UmsError {
  return new UmsError('UMS_E_TIMEOUT', {
    message: `${peer} did not answer within ${timeout_ms} ms, though it is there`,
    fault: 'destination',
    mend: `See the log of the agent on ${peer}.`,
  });
}
