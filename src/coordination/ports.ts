import type { Duplex } from 'node:stream';
import type { z } from 'zod';

/** How the saga speaks to another system; transfer/channel implements it over mutual TLS, tests by fault-injecting fakes. */
export interface PeerRequest<T> {
  method: 'GET' | 'POST' | 'DELETE';
  path: string;
  body?: unknown;
  schema: z.ZodType<T>;
  timeout_ms: number;
  signal?: AbortSignal;
}

export interface StreamOptions {
  signal?: AbortSignal;
  /** Called with each count of payload bytes sent. */
  onBytes?: (bytes: number) => void;
  /** Called with bytes that crossed the network, both ways, as they are known. */
  onWire?: (bytes: number) => void;
}

export type StreamHeader = { kind: string } & Record<string, unknown>;

export interface PeerPort {
  request<T>(peer: string, request: PeerRequest<T>): Promise<T>;
  send(
    peer: string,
    header: StreamHeader,
    body: AsyncIterable<Uint8Array>,
    options: StreamOptions,
  ): Promise<{ trailer: unknown; bytes: number }>;
  openDuplex(peer: string, header: StreamHeader, options: StreamOptions): Promise<Duplex>;
  ping(peer: string): Promise<number>;
  /** Throws why a system cannot be spoken to (unknown, revoked, expired), as far as this side knows. */
  requireLive(peer: string): void;
}

/** What the saga needs of the Frontman. */
export interface TrafficPort {
  hold(serviceUid: string, holder: string): Promise<void>;
  release(serviceUid: string, holder: string, target: { kind: 'here' } | { kind: 'peer'; peer: string }): Promise<void>;
  setRoute(serviceUid: string, target: { kind: 'here' } | { kind: 'peer'; peer: string }): void | Promise<void>;
}
