import { Agent } from 'node:https';
import { performance } from 'node:perf_hooks';
import type { Duplex } from 'node:stream';
import type { TLSSocket } from 'node:tls';
import { z } from 'zod';
import type { Logger } from '#src/telemetry/log.ts';
import { revoked } from '#src/trust/failures.ts';
import { parseWith } from '#src/trust/messages.ts';
import type { PeerRecord } from '#src/trust/store.ts';
import { pemSchema, type Trust } from '#src/trust/trust.ts';
import { type DataConnection, openData, speaksFor } from './connect.ts';
import { DEFAULT_LIMITS } from './limits.ts';
import { exchangeJson, type PeerRequest } from './request.ts';
import { sendBody } from './send.ts';
import { PeerStream } from './stream.ts';
import { reportWire } from './wire.ts';

export interface PeerClientOptions {
  readonly trust: Trust;
  readonly log: Logger;
  /** Silence after which a peer counts as gone. */
  readonly idle_ms?: number;
}

export interface StreamOptions {
  readonly signal?: AbortSignal | undefined;
  /** Called now and then with the bytes that crossed the network since the last call, both directions. */
  readonly onWire?: ((bytes: number) => void) | undefined;
}

export interface BodyOptions extends StreamOptions {
  /** Called with the size of each piece taken from the body. */
  readonly onBytes?: ((bytes: number) => void) | undefined;
}

const ROTATION_LIMIT_MS = 30_000;

/** Speaks to peers: control requests, bodies one way, and streams both ways. */
export class PeerClient {
  readonly #trust: Trust;
  readonly #log: Logger;
  readonly #idle_ms: number;
  readonly #sockets = new Map<string, Set<TLSSocket>>();
  readonly #rotations = new Map<string, Promise<PeerRecord>>();
  readonly #agents = new Map<string, Agent>();
  readonly #stopRevocation: () => void;

  constructor(options: PeerClientOptions) {
    this.#trust = options.trust;
    this.#log = options.log;
    this.#idle_ms = options.idle_ms ?? DEFAULT_LIMITS.idle_ms;
    this.#stopRevocation = this.#trust.onRevoked((peer) => {
      const reason = revoked(`The pairing with ${peer} was revoked on ${this.#trust.name}`);
      for (const socket of this.#sockets.get(peer) ?? []) socket.destroy(reason);
    });
  }

  /** One control message and its answer; an error of the other side is thrown as it was there. */
  async request<T>(peer: string, request: PeerRequest<T>): Promise<T> {
    return exchangeJson(this.#trust.livePeer(peer), request, {
      trust: this.#trust,
      agent: this.#agentFor(peer),
      idle_ms: this.#idle_ms,
      onSocket: (socket) => this.#track(peer, socket),
    });
  }

  /** Sends a body; resolves with the receiver's trailer once the receiver found it whole. */
  async send(
    peer: string,
    header: { kind: string },
    body: AsyncIterable<Uint8Array>,
    options: BodyOptions = {},
  ): Promise<{ trailer: unknown; bytes: number }> {
    const connection = await this.#open(this.#trust.livePeer(peer), header, options);
    return sendBody(connection, body, { idle_ms: this.#idle_ms, onBytes: options.onBytes });
  }

  async openDuplex(peer: string, header: { kind: string }, options: StreamOptions = {}): Promise<Duplex> {
    const { socket, reader } = await this.#open(this.#trust.livePeer(peer), header, options);
    return new PeerStream(socket, reader, { peer, idle_ms: this.#idle_ms });
  }

  /** Throws why a system cannot be spoken to, as far as this side knows without asking it. */
  requireLive(peer: string): void {
    this.#trust.livePeer(peer);
  }

  /** Milliseconds from a word to its answer, the handshake not counted. */
  async ping(peer: string, options: { signal?: AbortSignal } = {}): Promise<number> {
    const connection = await this.#open(this.#trust.livePeer(peer), { kind: 'ums.ping' }, options);
    const start = performance.now();
    await sendBody(connection, nothing(), { idle_ms: this.#idle_ms });
    return performance.now() - start;
  }

  /** Gets a new certificate from the peer, over a connection made with the old one. */
  rotate(peer: string): Promise<PeerRecord> {
    const under = this.#rotations.get(peer);
    if (under !== undefined) return under;
    const rotation = this.#rotate(peer).finally(() => this.#rotations.delete(peer));
    this.#rotations.set(peer, rotation);
    return rotation;
  }

  async #rotate(peer: string): Promise<PeerRecord> {
    const schema = z.object({ certificate_pem: pemSchema });
    return this.#trust.rotate(peer, async (request_pem) => {
      const header = { kind: 'ums.rotate', request_pem };
      const options = { signal: AbortSignal.timeout(ROTATION_LIMIT_MS) };
      const { trailer } = await this.send(peer, header, nothing(), options);
      return parseWith(schema, trailer, peer).certificate_pem;
    });
  }

  /** Renews every certificate that has less than a third of its life left; one that cannot be is tried the next time. */
  async rotateDue(): Promise<{ rotated: string[]; failed: string[] }> {
    const rotated: string[] = [];
    const failed: string[] = [];
    for (const peer of this.#trust.dueForRotation()) {
      try {
        await this.rotate(peer);
        rotated.push(peer);
      } catch (error) {
        this.#log.warn({ err: error, peer }, 'certificate could not be renewed');
        failed.push(peer);
      }
    }
    return { rotated, failed };
  }

  close(): void {
    this.#stopRevocation();
    for (const agent of this.#agents.values()) agent.destroy();
    for (const sockets of this.#sockets.values()) for (const socket of sockets) socket.destroy();
  }

  async #open(peer: PeerRecord, header: { kind: string }, options: StreamOptions): Promise<DataConnection> {
    return openData(this.#trust, peer, header, {
      idle_ms: this.#idle_ms,
      signal: options.signal,
      onSocket: (socket) => {
        this.#track(peer.name, socket);
        if (options.onWire !== undefined) reportWire(socket, options.onWire);
      },
    });
  }

  /** One for each peer: connections are kept open only under a check that the agent, not the request, brings. */
  #agentFor(peer: string): Agent {
    const known = this.#agents.get(peer);
    if (known !== undefined) return known;
    const agent = new Agent({
      keepAlive: true,
      maxSockets: 32,
      maxFreeSockets: 2,
      // Peers refuse resumed sessions, so none are kept.
      maxCachedSessions: 0,
      checkServerIdentity: speaksFor(peer),
    });
    this.#agents.set(peer, agent);
    return agent;
  }

  #track(peer: string, socket: TLSSocket): void {
    const sockets = this.#sockets.get(peer) ?? new Set<TLSSocket>();
    this.#sockets.set(peer, sockets);
    if (sockets.has(socket)) return;
    sockets.add(socket);
    socket.once('close', () => {
      sockets.delete(socket);
    });
  }
}

async function* nothing(): AsyncGenerator<Uint8Array> {
  yield* [];
}
