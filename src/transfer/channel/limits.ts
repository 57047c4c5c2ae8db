export const HTTP_PROTOCOL = 'http/1.1';
export const DATA_PROTOCOL = 'ums-data/1';

export const HEADER_LIMIT_BYTES = 64 * 1024;
/** A receiver's last word on a stream. */
export const TRAILER_LIMIT_BYTES = 1024 * 1024;
export const FRAME_LIMIT_BYTES = 4 * 1024 * 1024;
/** Smaller pieces of a one-way body are sent together until they are this many. */
export const COALESCE_BYTES = 64 * 1024;
/** Bytes that a sender may have handed to the socket and the network has not yet taken. */
export const IN_FLIGHT_LIMIT_BYTES = 1024 * 1024;
/** Body of a request or response of the control channel. */
export const BODY_LIMIT_BYTES = 8 * 1024 * 1024;
export const HTTP_HEADER_LIMIT_BYTES = 16 * 1024;

export interface PeerLimits {
  /** Silence after which the other side counts as gone. Both sides give a sign of life three times as often. */
  readonly idle_ms: number;
  /** From the TCP connection to the end of the TLS handshake. */
  readonly handshake_ms: number;
  /** From the first byte of an HTTP request to its last. */
  readonly requestArrival_ms: number;
  readonly connections: number;
  readonly connectionsPerPeer: number;
}

export const DEFAULT_LIMITS: PeerLimits = {
  idle_ms: 15_000,
  handshake_ms: 5000,
  requestArrival_ms: 60_000,
  // A Frontman carries each connection of a client over one of these.
  connections: 2048,
  connectionsPerPeer: 1024,
};

export const KEEPALIVE_DELAY_MS = 5000;

export function aliveInterval_ms(idle_ms: number): number {
  return Math.max(Math.min(5000, Math.floor(idle_ms / 3)), 1);
}
