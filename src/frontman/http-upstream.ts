import { Agent, type ClientRequest } from 'node:http';
import { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type { Gate, Lease } from './gate.ts';
import { reset } from './streams.ts';

/** node:http's agent for exactly one stream that is open already. */
class OneStreamAgent extends Agent {
  readonly #stream: Duplex;

  constructor(stream: Duplex, keepAlive: boolean) {
    super(keepAlive ? { keepAlive, maxSockets: 1 } : {});
    this.#stream = stream;
  }

  override createConnection(): Duplex {
    return this.#stream;
  }

  /** The stream may be any duplex, and one that is no socket has none of the options that node:http would set. */
  override keepSocketAlive(stream: Duplex): boolean {
    if (!(stream instanceof Socket)) return true;
    super.keepSocketAlive(stream);
    return true;
  }

  override reuseSocket(stream: Duplex, request: ClientRequest): void {
    if (stream instanceof Socket) super.reuseSocket(stream, request);
  }
}

/** One stream to the service that speaks HTTP/1.1. */
export class Upstream {
  readonly lease: Lease;
  readonly agent: Agent;
  readonly reusable: boolean;

  constructor(lease: Lease, reusable: boolean) {
    this.lease = lease;
    this.reusable = reusable;
    this.agent = new OneStreamAgent(lease.stream, reusable);
  }

  close(): void {
    reset(this.lease.stream);
  }
}

/** Streams to the service between two requests. Only requests that may be sent twice use them, see http-front.ts. */
export class UpstreamPool {
  readonly #idle: Upstream[] = [];
  readonly #limit: number;

  constructor(limit: number) {
    this.#limit = limit;
  }

  take(gate: Gate): Upstream | undefined {
    for (let upstream = this.#idle.pop(); upstream !== undefined; upstream = this.#idle.pop()) {
      const { lease } = upstream;
      if (
        lease.epoch === gate.epoch &&
        gate.route.state === 'open' &&
        !lease.stream.destroyed &&
        lease.stream.writable
      ) {
        return upstream;
      }
      upstream.close();
    }
    return undefined;
  }

  give(upstream: Upstream, gate: Gate): void {
    if (!upstream.reusable || upstream.lease.epoch !== gate.epoch || this.#idle.length >= this.#limit) {
      upstream.close();
      return;
    }
    upstream.lease.drain = async () => upstream.close();
    this.#idle.push(upstream);
  }

  clear(): void {
    for (const upstream of this.#idle.splice(0)) upstream.close();
  }
}
