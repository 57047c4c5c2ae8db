import { once } from 'node:events';
import type { Server as HttpServer } from 'node:http';
import { createServer, type Server, type TLSSocket } from 'node:tls';
import { z } from 'zod';
import { toUmsError, UmsError } from '#src/telemetry/errors.ts';
import type { Logger } from '#src/telemetry/log.ts';
import { expired, unpaired } from '#src/trust/failures.ts';
import type { Trust } from '#src/trust/trust.ts';
import { pemSchema } from '#src/trust/trust.ts';
import { setPeer } from './http.ts';
import { DATA_PROTOCOL, DEFAULT_LIMITS, HTTP_PROTOCOL, KEEPALIVE_DELAY_MS, type PeerLimits } from './limits.ts';
import {
  type DuplexHandler,
  duplexKind,
  type OnewayHandler,
  onewayKind,
  refusalNotice,
  serveStream,
  type StreamKind,
} from './serve.ts';

/** How long a refused peer may take to read why. */
const REFUSAL_LIMIT_MS = 500;
/** Handshakes that may be under way beside the connections that are through theirs. */
const HANDSHAKE_LIMIT = 64;

export interface PeerServerOptions {
  readonly trust: Trust;
  readonly host: string;
  readonly port: number;
  /** Made with createPeerHttpServer. */
  readonly httpServer: HttpServer;
  readonly log: Logger;
  readonly limits?: Partial<PeerLimits>;
}

/** The endpoint that peers connect to: authenticates, then hands on to the control server or a stream's handler. */
export class PeerServer {
  readonly #trust: Trust;
  readonly #options: PeerServerOptions;
  readonly #limits: PeerLimits;
  readonly #log: Logger;
  readonly #server: Server;
  readonly #connections = new Map<string, Set<TLSSocket>>();
  readonly #kinds = new Map<string, StreamKind>();
  readonly #stopRevocation: () => void;

  constructor(options: PeerServerOptions) {
    this.#trust = options.trust;
    this.#options = options;
    this.#limits = { ...DEFAULT_LIMITS, ...options.limits };
    this.#log = options.log;
    this.#server = createServer({
      ...options.trust.serverCredentials(),
      minVersion: 'TLSv1.3',
      requestCert: true,
      // A connection without a certificate of ours is refused below, where it can also be told why.
      rejectUnauthorized: false,
      ALPNProtocols: [DATA_PROTOCOL, HTTP_PROTOCOL],
      handshakeTimeout: this.#limits.handshake_ms,
      noDelay: true,
      keepAlive: true,
      keepAliveInitialDelay: KEEPALIVE_DELAY_MS,
    });
    this.#server.maxConnections = this.#limits.connections + HANDSHAKE_LIMIT;
    this.#server.on('secureConnection', (socket) => this.#admit(socket));
    this.#server.on('tlsClientError', (error, socket) => {
      this.#log.info({ remote: socket.remoteAddress, reason: error.message }, 'peer handshake failed');
      socket.destroy();
    });
    this.#stopRevocation = this.#trust.onRevoked((peer) => {
      for (const socket of this.#connections.get(peer) ?? []) socket.destroy();
    });
    this.#registerOwnKinds();
  }

  get port(): number {
    const address = this.#server.address();
    return typeof address === 'object' && address !== null ? address.port : this.#options.port;
  }

  handleOneway<H extends { kind: string }>(kind: string, schema: z.ZodType<H>, handler: OnewayHandler<H>): void {
    this.#register(kind, onewayKind(schema, handler, this.#limits));
  }

  /** `admit`, if given, may throw the reason for a refusal before the stream is accepted. */
  handleDuplex<H extends { kind: string }>(
    kind: string,
    schema: z.ZodType<H>,
    handler: DuplexHandler<H>,
    admit?: (peer: string, header: H) => void | Promise<void>,
  ): void {
    this.#register(kind, duplexKind(schema, handler, this.#limits, admit));
  }

  async listen(): Promise<void> {
    try {
      this.#server.listen(this.#options.port, this.#options.host);
      await once(this.#server, 'listening');
    } catch (error) {
      throw new UmsError('UMS_E_USAGE', {
        message: `The peer port ${this.#options.port} on ${this.#options.host} cannot be opened`,
        fault: 'user',
        mend: 'Find out what uses the port, or start the agent with another one.',
        cause: error,
      });
    }
    this.#server.on('error', (error) => this.#log.error({ err: error }, 'peer listener failed'));
  }

  /** To be called after the trust's own certificate was renewed. */
  renewCertificate(): void {
    this.#server.setSecureContext({ ...this.#trust.serverCredentials(), minVersion: 'TLSv1.3' });
  }

  async close(): Promise<void> {
    this.#stopRevocation();
    for (const sockets of this.#connections.values()) for (const socket of sockets) socket.destroy();
    if (!this.#server.listening) return;
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  #register(kind: string, entry: StreamKind): void {
    if (this.#kinds.has(kind)) throw new Error(`two handlers for streams of kind ${kind}`);
    this.#kinds.set(kind, entry);
  }

  #registerOwnKinds(): void {
    this.handleOneway('ums.ping', z.object({ kind: z.literal('ums.ping') }), async ({ body }) => {
      for await (const chunk of body) this.#log.trace({ bytes: chunk.length }, 'ping');
      return {};
    });
    const rotation = z.object({ kind: z.literal('ums.rotate'), request_pem: pemSchema });
    this.handleOneway('ums.rotate', rotation, async ({ peer, header, body }) => {
      for await (const chunk of body) this.#log.trace({ bytes: chunk.length }, 'rotation');
      return { certificate_pem: await this.#trust.issueRotation(peer, header.request_pem) };
    });
  }

  /** Decides on a connection by its certificate alone: no byte that the peer sent inside it has been looked at. */
  #admit(socket: TLSSocket): void {
    socket.on('error', (error) => this.#log.debug({ reason: error.message }, 'peer connection broke'));
    let peer: string;
    try {
      peer = this.#identify(socket);
      this.#count(peer, socket);
    } catch (error) {
      this.#refuse(socket, toUmsError(error));
      return;
    }
    setPeer(socket, peer);
    if (socket.alpnProtocol === HTTP_PROTOCOL) this.#options.httpServer.emit('connection', socket);
    else void serveStream(socket, peer, { kinds: this.#kinds, limits: this.#limits, log: this.#log });
  }

  #identify(socket: TLSSocket): string {
    const certificate = socket.getPeerX509Certificate();
    if (certificate === undefined) throw unpaired(`${this.#trust.name} wants a certificate from its peers`);
    if (!socket.authorized) {
      const reason: unknown = socket.authorizationError;
      if (reason === 'CERT_HAS_EXPIRED') throw expired('The certificate of this peer expired');
      throw unpaired(`${this.#trust.name} did not issue that certificate`);
    }
    // A resumed session would carry what was decided for an earlier connection.
    if (socket.isSessionReused()) throw unpaired('Sessions are not resumed');
    return this.#trust.identify(certificate);
  }

  #count(peer: string, socket: TLSSocket): void {
    const own = this.#connections.get(peer) ?? new Set<TLSSocket>();
    let all = 0;
    for (const sockets of this.#connections.values()) all += sockets.size;
    if (own.size >= this.#limits.connectionsPerPeer || all >= this.#limits.connections) {
      throw new UmsError('UMS_E_PEER_MESSAGE', {
        message: `${peer} has too many connections to ${this.#trust.name} at once`,
        fault: 'network',
        mend: 'Wait until other migrations are done, then try again.',
      });
    }
    own.add(socket);
    this.#connections.set(peer, own);
    socket.once('close', () => {
      own.delete(socket);
      if (own.size === 0 && this.#connections.get(peer) === own) this.#connections.delete(peer);
    });
  }

  #refuse(socket: TLSSocket, reason: UmsError): void {
    this.#log.warn(
      { audit: true, event: 'peer.refused', remote: socket.remoteAddress, code: reason.code },
      reason.message,
    );
    const notice = refusalNotice(socket, reason);
    if (notice === undefined) {
      socket.destroy();
      return;
    }
    // What the peer sent is thrown away unread; left in the kernel it would turn the close into a reset.
    socket.resume();
    socket.end(notice);
    const timer = setTimeout(() => socket.destroy(), REFUSAL_LIMIT_MS);
    socket.once('close', () => clearTimeout(timer));
  }
}
