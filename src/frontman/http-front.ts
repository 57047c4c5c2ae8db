import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type { ErrorCode } from '#src/telemetry/error-codes.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { Refusal, toRefusal } from './contract.ts';
import { closeServer, type Front, type FrontParts, listen, track } from './front.ts';
import type { Lease } from './gate.ts';
import { exchange, type Outcome } from './http-exchange.ts';
import { hasBody, upgradeHead } from './http-headers.ts';
import { Upstream, UpstreamPool } from './http-upstream.ts';
import { join } from './pass.ts';
import { farewell, reset, tune } from './streams.ts';

const MAX_IDLE = 64;
const MAX_REPLAYS = 4;
const RETRY_AFTER_S = 1;

interface Sent {
  upstream: Upstream;
  outcome: Promise<Outcome>;
}

/**
 * Passes HTTP/1.1 request by request, so that clients' connections outlive a move. A request that may be sent twice
 * (GET or HEAD without a body) uses streams that are kept open, and is sent again if one breaks before an answer.
 * Every other request gets a stream of its own: a kept one may close just as the request is under way, and then nobody
 * could tell whether the service saw it.
 */
export class HttpFront implements Front {
  readonly record: FrontParts['record'];
  readonly #parts: FrontParts;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #pool = new UpstreamPool(MAX_IDLE);
  #waiting = 0;

  constructor(parts: FrontParts) {
    this.record = parts.record;
    this.#parts = parts;
    const onRequest = (request: IncomingMessage, response: ServerResponse): void => {
      void this.#serve(request, response);
    };
    // A request may wait in a hold for as long as its Frontman says, so the server sets no limit to its whole time.
    this.#server = createServer(
      { noDelay: true, keepAlive: true, requestTimeout: 0, keepAliveTimeout: 65_000 },
      onRequest,
    );
    this.#server.maxConnections = parts.limits.maxConnections;
    this.#server.on('checkContinue', onRequest);
    this.#server.on('upgrade', (request, socket, head) => void this.#upgrade(request, socket, head));
    this.#server.on('connection', (socket) => track(this.#sockets, socket));
    this.#server.on('drop', () => parts.counters.add('dropped'));
  }

  get connections(): number {
    return this.#sockets.size;
  }

  get waiting(): number {
    return this.#waiting;
  }

  listen(): Promise<void> {
    return listen(this.#server, this.#parts);
  }

  async close(): Promise<void> {
    const done = closeServer(this.#server);
    this.#pool.clear();
    for (const socket of this.#sockets) reset(socket);
    await done;
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { counters } = this.#parts;
    const gone = new AbortController();
    response.once('close', () => gone.abort());
    response.on('error', () => response.destroy());
    request.on('error', () => response.destroy());
    const replayable = (request.method === 'GET' || request.method === 'HEAD') && !hasBody(request);
    try {
      for (let replays = 0; replays <= MAX_REPLAYS; replays += 1) {
        const sent = await this.#send(request, response, replayable, gone.signal);
        const outcome = await sent.outcome;
        if (outcome !== 'lost') {
          counters.add('passed');
          if (outcome === 'done') this.#pool.give(sent.upstream, this.#parts.gate());
          return;
        }
        if (gone.signal.aborted || response.headersSent || !replayable) break;
        counters.add('replayed');
      }
      counters.add('broken');
      throw new Refusal('failed', 'the connection to the service broke before the answer was complete');
    } catch (thrown) {
      this.#refuse(toRefusal(thrown), request, response);
    }
  }

  /** Over a kept stream if there is one and it may be used, otherwise over a new one. */
  async #send(
    request: IncomingMessage,
    response: ServerResponse,
    replayable: boolean,
    gone: AbortSignal,
  ): Promise<Sent> {
    const { gate, limits } = this.#parts;
    const start = (upstream: Upstream): Sent => ({
      upstream,
      outcome: exchange(upstream, request, response, limits.httpDrain_ms),
    });
    const kept = replayable ? this.#pool.take(gate()) : undefined;
    if (kept !== undefined) return start(kept);
    const drain_ms = replayable ? undefined : limits.httpDrain_ms;
    return this.#open(gone, drain_ms, (lease) => start(new Upstream(lease, replayable)));
  }

  async #open<T>(gone: AbortSignal, drain_ms: number | undefined, use: (lease: Lease) => T): Promise<T> {
    const { gate, limits, record } = this.#parts;
    this.#waiting += 1;
    try {
      const deadline = performance.now() + record.holdLimit_ms;
      const ask = { port: record.port, deadline, hops: limits.hops, gone };
      return await gate().open(drain_ms === undefined ? ask : { ...ask, drain_ms }, use);
    } finally {
      this.#waiting -= 1;
    }
  }

  #refuse(refusal: Refusal, request: IncomingMessage, response: ServerResponse): void {
    const { counters, record } = this.#parts;
    counters.refused(refusal, { frontman: record.id, service: record.service });
    if (response.headersSent || response.destroyed) {
      // The answer is cut short, and the only way to say so is to break the connection.
      response.destroy();
      return;
    }
    const { status, body } = answerTo(refusal, record.service);
    const headers: Record<string, string | number> = {
      'Content-Type': 'application/json',
      'Content-Length': Buffer.byteLength(body),
      'Cache-Control': 'no-store',
    };
    if (status === 503) headers['Retry-After'] = RETRY_AFTER_S;
    // A body that nobody will read stands between this answer and the connection's next request.
    if (hasBody(request) && !request.complete) headers['Connection'] = 'close';
    response.writeHead(status, headers).end(body);
  }

  async #upgrade(request: IncomingMessage, client: Duplex, head: Buffer): Promise<void> {
    const { counters, limits, record } = this.#parts;
    const gone = new AbortController();
    const onClose = (): void => gone.abort();
    client.once('close', onClose);
    client.on('error', () => client.destroy());
    client.pause();
    tune(client);
    try {
      await this.#open(gone.signal, undefined, (lease) => {
        lease.stream.write(upgradeHead(request), 'latin1');
        if (head.length > 0) lease.stream.write(head);
        join(client, lease, limits);
      });
      counters.add('passed');
    } catch (thrown) {
      const refusal = toRefusal(thrown);
      counters.refused(refusal, { frontman: record.id, service: record.service });
      if (client.destroyed) return;
      const { status, body } = answerTo(refusal, record.service);
      const words = status === 503 ? `503 Service Unavailable\r\nRetry-After: ${RETRY_AFTER_S}` : '502 Bad Gateway';
      client.write(
        `HTTP/1.1 ${words}\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\n` +
          `Cache-Control: no-store\r\nConnection: close\r\n\r\n${body}`,
      );
      farewell(client, limits.linger_ms);
    }
  }
}

/** What an HTTP client is told. 503 means that the service never saw the request, 502 that this is not certain. */
function answerTo(refusal: Refusal, service: string): { status: number; body: string } {
  const away = refusal.kind === 'limit' || refusal.kind === 'full' || refusal.kind === 'closed';
  const code: ErrorCode = away
    ? 'UMS_E_TIMEOUT'
    : refusal.kind === 'absent'
      ? 'UMS_E_SERVICE_NOT_RUNNING'
      : 'UMS_E_FRONTMAN';
  const error = new UmsError(code, {
    message: `The request did not get an answer from ${service}: ${refusal.message}.`,
    fault: away ? 'ums' : 'service',
    state: away
      ? 'The service is being moved; it did not see this request.'
      : 'The service may have seen this request.',
    mend: away ? 'Send the request again.' : 'See whether the service runs: ums ls.',
  });
  return { status: away ? 503 : 502, body: `${JSON.stringify({ error: error.toReport() })}\n` };
}
