import type { Duplex } from 'node:stream';
import { z } from 'zod';

/**
 * The first message of a stream from one agent to another that carries a client's connection to a service. After it the
 * far side answers one byte (`ANSWERS`), and from then on the stream is the connection's bytes and nothing else.
 */
export const peerStreamHeaderSchema = z.object({
  kind: z.literal('frontman'),
  /** The service's uid, the same on every system. */
  service: z.string().min(1).max(512),
  /** Port inside the service. */
  port: z.int().min(1).max(65_535),
  /** Milliseconds that the stream may still wait while the service is away. */
  holdLimit_ms: z.int().min(0).max(600_000),
  /** How many times the stream may still be passed on to another system. */
  hops: z.int().min(0).max(16),
  /** Milliseconds that a hold lets the stream come to its own end; without it, it is drained as plain TCP. */
  drain_ms: z.int().min(0).max(60_000).optional(),
});
export type PeerStreamHeader = z.infer<typeof peerStreamHeaderSchema>;

export type OpenPeerStream = (
  peer: string,
  header: PeerStreamHeader,
  options: { signal: AbortSignal },
) => Promise<Duplex>;
export type LocalAddress = (serviceUid: string) => Promise<string | undefined>;

/** Where a service is. */
export type Target = { kind: 'here' } | { kind: 'peer'; peer: string };

export interface Route {
  target: Target;
  state: 'open' | 'holding';
  /** Id of the migration that holds it; null while it is open. */
  holder: string | null;
}

/** Has the shape of the API's frontmanRequestSchema. */
export interface FrontmanRequest {
  service: string;
  listen: { address: string; port: number };
  port: number;
  mode: 'tcp' | 'http';
  holdLimit_ms: number;
}

/** Has the shape of the API's frontmanSchema. */
export interface FrontmanStatus extends FrontmanRequest {
  id: string;
  status: 'open' | 'holding';
  target: string;
  connections: number;
  waiting: number;
}

export interface Limits {
  /** Connections and requests of one service that wait at the same time. */
  maxWaiting: number;
  /** Client connections of one Frontman. */
  maxConnections: number;
  /** Connections to the service, or streams to a peer, being opened for one service at the same time. */
  maxOpening: number;
  /** How many times a stream may be passed on between systems. */
  hops: number;
  /** Milliseconds to open one connection, the waiting at the far side not counted. */
  connectTimeout_ms: number;
  /** Milliseconds after a release in which a service that does not answer is tried again. */
  grace_ms: number;
  /** At a hold: milliseconds without a byte from the service after which a TCP connection counts as quiet. */
  quiet_ms: number;
  /** At a hold: milliseconds after which a TCP connection is closed even if it is not quiet. */
  tcpDrain_ms: number;
  /** At a hold: milliseconds that the service gets to close a connection that was ended. */
  farewell_ms: number;
  /** At a hold: milliseconds that an HTTP request in flight gets to finish. */
  httpDrain_ms: number;
  /** Milliseconds that a client gets to take its last bytes and close. */
  linger_ms: number;
}

export const DEFAULT_LIMITS: Limits = {
  maxWaiting: 10_000,
  maxConnections: 20_000,
  maxOpening: 128,
  hops: 4,
  connectTimeout_ms: 10_000,
  grace_ms: 10_000,
  quiet_ms: 20,
  tcpDrain_ms: 200,
  farewell_ms: 20,
  httpDrain_ms: 2000,
  linger_ms: 2000,
};

/** Why a connection or request does not reach the service. */
export type RefusalKind =
  /** It waited as long as it may. */
  | 'limit'
  /** Too many wait already. */
  | 'full'
  /** The far side's route points back to where the stream came from. */
  | 'returned'
  /** The stream was passed on too often: the routes form a loop. */
  | 'hops'
  /** The service has no address on the system its route names. */
  | 'absent'
  /** The service or the peer did not accept the connection. */
  | 'failed'
  /** The header made no sense. */
  | 'malformed'
  /** The Frontman is being closed or removed. */
  | 'closed'
  /** The client went away; nobody is told. */
  | 'gone'
  /** The route changed while the connection was being opened; it is opened anew and nobody is told. */
  | 'moved';

export class Refusal extends Error {
  readonly kind: RefusalKind;
  constructor(kind: RefusalKind, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'Refusal';
    this.kind = kind;
  }
}

export function toRefusal(thrown: unknown): Refusal {
  if (thrown instanceof Refusal) return thrown;
  return new Refusal('failed', thrown instanceof Error ? thrown.message : String(thrown), thrown);
}

/** The byte with which the far side answers a header. */
export const ANSWERS = {
  connected: 0,
  limit: 1,
  full: 2,
  returned: 3,
  hops: 4,
  absent: 5,
  failed: 6,
  malformed: 7,
  closed: 8,
} as const;

export function answerOf(kind: RefusalKind): number {
  return kind === 'gone' || kind === 'moved' ? ANSWERS.closed : ANSWERS[kind];
}

export function refusalOf(answer: number, peer: string): Refusal {
  const words: readonly [RefusalKind, string][] = [
    ['malformed', 'sent an answer that is none'],
    ['limit', 'says that the service did not come back in time'],
    ['full', 'says that too many connections wait for the service'],
    ['returned', 'says that the service is on this system'],
    ['hops', 'says that the routes to the service form a loop'],
    ['absent', 'says that the service is not there'],
    ['failed', 'could not connect to the service'],
    ['malformed', 'did not understand the stream'],
    ['closed', 'closes its Frontmen'],
  ];
  const [kind, text] = words[answer] ?? ['malformed', 'sent an answer that is none'];
  return new Refusal(kind, `${peer} ${text}`);
}
