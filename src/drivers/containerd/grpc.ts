import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { type ClientHttp2Session, type ClientHttp2Stream, connect, constants } from 'node:http2';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import protobuf from 'protobufjs';
import { UmsError } from '#src/telemetry/errors.ts';

/**
 * gRPC over a unix socket, as far as containerd's interface needs it: one message there, one or several back. Node speaks
 * HTTP/2 and protobufjs the messages; what remains is the length before each message and the status after the last
 * (github.com/grpc/grpc, PROTOCOL-HTTP2).
 */
const PREFIX_BYTES = 5;
/** containerd sends no more than half of it in one message. */
const MESSAGE_LIMIT_BYTES = 32 * 1024 * 1024;
const CONNECT_LIMIT_MS = 10_000;

export const STATUS = { notFound: 5, alreadyExists: 6, failedPrecondition: 9, unavailable: 14 } as const;

const messages = protobuf.parse(readFileSync(join(import.meta.dirname, 'api.proto'), 'utf8'), { keepCase: true }).root;

/** containerd answered with an error; `status` is gRPC's. */
export class ContainerdRefusal extends UmsError {
  readonly status: number;

  constructor(status: number, method: string, message: string) {
    super('UMS_E_ENGINE', { message: `containerd refused: ${message}`, fault: 'ums', detail: `${method}: ${status}` });
    this.status = status;
  }
}

export function encode(type: string, value: Record<string, unknown>): Buffer {
  const message = messages.lookupType(type);
  return Buffer.from(message.encode(message.fromObject(value)).finish());
}

/** A plain object with every field; numbers are exact up to 2^53. */
export function decode(type: string, bytes: Uint8Array): unknown {
  const message = messages.lookupType(type);
  return message.toObject(message.decode(bytes), { longs: Number, enums: String, defaults: true });
}

export interface Call {
  /** `package.Service/Method`. */
  method: string;
  request: [type: string, value: Record<string, unknown>];
  answer: string;
  headers: Record<string, string>;
  limit_ms: number;
  signal?: AbortSignal;
}

export class GrpcClient {
  readonly #socketPath: string;
  #session: ClientHttp2Session | undefined;
  #calls = 0;

  constructor(socketPath: string) {
    this.#socketPath = socketPath;
  }

  /** The one message that comes back. */
  async call(call: Call): Promise<unknown> {
    let last: unknown;
    for await (const message of this.stream(call)) last = message;
    return last;
  }

  async *stream(call: Call): AsyncGenerator<unknown, void, undefined> {
    const session = await this.#connected();
    // An idle connection does not keep the process; one with a call does.
    this.#calls += 1;
    session.ref();
    try {
      yield* receive(session, call);
    } finally {
      this.#calls -= 1;
      if (this.#calls === 0) session.unref();
    }
  }

  async #connected(): Promise<ClientHttp2Session> {
    const known = this.#session;
    if (known !== undefined && !known.closed && !known.destroyed) return known;
    const session = connect('http://containerd', { createConnection: () => createConnection(this.#socketPath) });
    this.#session = session;
    // Whoever calls is told; between calls nobody needs to know.
    session.on('error', () => session.destroy());
    session.on('goaway', () => session.close());
    try {
      await once(session, 'connect', { signal: AbortSignal.timeout(CONNECT_LIMIT_MS) });
    } catch (error) {
      session.destroy();
      throw unreachable(this.#socketPath, error);
    }
    return session;
  }
}

async function* receive(session: ClientHttp2Session, call: Call): AsyncGenerator<unknown, void, undefined> {
  const stream = session.request({
    ...call.headers,
    [constants.HTTP2_HEADER_METHOD]: 'POST',
    [constants.HTTP2_HEADER_PATH]: `/${call.method}`,
    [constants.HTTP2_HEADER_CONTENT_TYPE]: 'application/grpc',
    [constants.HTTP2_HEADER_TE]: 'trailers',
    'grpc-timeout': `${call.limit_ms}m`,
  });
  let timedOut = false;
  const timer = setTimeout(() => {
    timedOut = true;
    stream.close(constants.NGHTTP2_CANCEL);
  }, call.limit_ms);
  const abort = (): void => stream.close(constants.NGHTTP2_CANCEL);
  call.signal?.addEventListener('abort', abort, { once: true });
  let status: Status | undefined;
  const notice = (headers: Record<string, unknown>): void => void (status ??= statusIn(headers));
  stream.on('response', notice);
  stream.on('trailers', notice);
  try {
    stream.end(framed(encode(...call.request)));
    for await (const message of messagesOf(stream)) yield decode(call.answer, message);
  } catch (error) {
    if (status === undefined && !timedOut && call.signal?.aborted !== true) throw broken(call.method, error);
  } finally {
    clearTimeout(timer);
    call.signal?.removeEventListener('abort', abort);
    if (!stream.closed) stream.close(constants.NGHTTP2_CANCEL);
  }
  call.signal?.throwIfAborted();
  if (status?.code === 0) return;
  if (status !== undefined) throw new ContainerdRefusal(status.code, call.method, status.message);
  if (timedOut) throw timeout(call);
  throw broken(call.method, new Error('the answer has no status'));
}

interface Status {
  code: number;
  message: string;
}

function statusIn(headers: Record<string, unknown>): Status | undefined {
  const code = headers['grpc-status'];
  const message = headers['grpc-message'];
  if (typeof code !== 'string') return undefined;
  return { code: Number(code), message: typeof message === 'string' ? decodeMessage(message) : 'no reason given' };
}

/** Percent-encoded; what is not stays as it is. */
function decodeMessage(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function framed(message: Buffer): Buffer {
  const prefix = Buffer.alloc(PREFIX_BYTES);
  prefix.writeUInt32BE(message.length, 1);
  return Buffer.concat([prefix, message]);
}

async function* messagesOf(stream: ClientHttp2Stream): AsyncGenerator<Buffer, void, undefined> {
  let chunks: Buffer[] = [];
  let held_bytes = 0;
  let wanted_bytes = PREFIX_BYTES;
  for await (const chunk of stream) {
    if (!Buffer.isBuffer(chunk)) continue;
    chunks.push(chunk);
    held_bytes += chunk.length;
    while (held_bytes >= wanted_bytes) {
      const bytes = Buffer.concat(chunks);
      const size = bytes.readUInt32BE(1);
      if (size > MESSAGE_LIMIT_BYTES) throw new Error(`a message of ${size} bytes`);
      wanted_bytes = PREFIX_BYTES + size;
      if (bytes.length < wanted_bytes) {
        chunks = [bytes];
        break;
      }
      yield bytes.subarray(PREFIX_BYTES, wanted_bytes);
      chunks = [bytes.subarray(wanted_bytes)];
      held_bytes -= wanted_bytes;
      wanted_bytes = PREFIX_BYTES;
    }
  }
  if (held_bytes > 0) throw new Error('the answer ends in the middle of a message');
}

function unreachable(socketPath: string, cause: unknown): UmsError {
  return new UmsError('UMS_E_ENGINE', {
    message: `containerd does not answer at ${socketPath}: ${cause instanceof Error ? cause.message : String(cause)}`,
    fault: 'ums',
    mend: 'See whether containerd runs: ctr version',
    cause,
  });
}

function broken(method: string, cause: unknown): UmsError {
  return new UmsError('UMS_E_ENGINE', {
    message: `containerd's answer broke off: ${cause instanceof Error ? cause.message : String(cause)}`,
    fault: 'ums',
    mend: 'See whether containerd runs: ctr version',
    detail: method,
    cause,
  });
}

function timeout({ method, limit_ms }: Call): UmsError {
  return new UmsError('UMS_E_TIMEOUT', {
    message: `containerd did not answer within ${limit_ms} ms`,
    fault: 'ums',
    detail: method,
  });
}
