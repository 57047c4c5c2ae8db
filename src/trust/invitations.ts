import { createHash, randomBytes, timingSafeEqual, type X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type Server, type TLSSocket } from 'node:tls';
import { toUmsError, UmsError } from '#src/telemetry/errors.ts';
import type { Logger } from '#src/telemetry/log.ts';
import { malformed } from './failures.ts';
import { receiveMessage, sendMessage } from './messages.ts';
import { answerSchema, committedSchema, type Hello, helloSchema } from './pairing-messages.ts';
import { ByteReader } from './reader.ts';
import { badToken, encodeToken, PAIRING_MESSAGE_LIMIT_BYTES, PAIRING_PROTOCOL } from './token.ts';
import type { Trust } from './trust.ts';
import { fingerprintOf, isAuthority, parseCertificate } from './x509.ts';

const INVITATION_LIMIT = 16;
const CONNECTION_LIMIT = 8;
const EXCHANGE_LIMIT_MS = 15_000;
/** Wrong secrets after which every open invitation is withdrawn. */
const ATTEMPT_LIMIT = 16;

interface Invitation {
  readonly secretHash: Buffer;
  readonly expires_at: number;
  /** One exchange at a time; given back when that exchange fails. */
  claimed: boolean;
}

export interface InvitationsOptions {
  readonly trust: Trust;
  readonly host: string;
  readonly port: number;
  readonly log: Logger;
}

/** The inviting side of pairing: a listener that exists only while an invitation is open. */
export class Invitations {
  readonly #trust: Trust;
  readonly #host: string;
  readonly #port: number;
  readonly #audit: Logger;
  readonly #open = new Set<Invitation>();
  readonly #sockets = new Set<TLSSocket>();
  #server: Server | undefined;
  #starting: Promise<Server> | undefined;
  #attempts = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: InvitationsOptions) {
    this.#trust = options.trust;
    this.#host = options.host;
    this.#port = options.port;
    this.#audit = options.log.child({ audit: true });
  }

  get listening(): boolean {
    return this.#server !== undefined;
  }

  /** Opens an invitation for one system, once. The token is a secret: it is shown to a person and never logged. */
  async invite(request: { ttl_s: number }): Promise<{ token: string; expires_at: number }> {
    this.#sweep();
    if (this.#open.size >= INVITATION_LIMIT) {
      throw new UmsError('UMS_E_USAGE', {
        message: `${INVITATION_LIMIT} invitations are open already`,
        fault: 'user',
        mend: 'Use one of them, or wait until they expire.',
      });
    }
    const secret = randomBytes(32).toString('base64url');
    const expires_at = Date.now() + request.ttl_s * 1000;
    const invitation = { secretHash: hash(secret), expires_at, claimed: false };
    this.#open.add(invitation);
    try {
      const server = await this.#listen();
      const address = server.address();
      const port = typeof address === 'object' && address !== null ? address.port : this.#port;
      const { name, fingerprint } = this.#trust;
      const token = encodeToken({ v: 1, name, address: this.#trust.address, port, fingerprint, secret, expires_at });
      this.#audit.info({ event: 'invitation.opened', expires_at, port }, 'invitation opened');
      this.#schedule();
      return { token, expires_at };
    } catch (error) {
      this.#open.delete(invitation);
      throw error;
    }
  }

  async close(): Promise<void> {
    this.#open.clear();
    for (const socket of this.#sockets) socket.destroy();
    await this.#closeListener();
  }

  #listen(): Promise<Server> {
    this.#starting ??= this.#start();
    return this.#starting;
  }

  async #start(): Promise<Server> {
    const { key, cert } = this.#trust.serverCredentials();
    const server = createServer({
      key,
      cert,
      minVersion: 'TLSv1.3',
      ALPNProtocols: [PAIRING_PROTOCOL],
      handshakeTimeout: 5000,
    });
    server.maxConnections = CONNECTION_LIMIT;
    server.on('secureConnection', (socket) => void this.#serve(socket));
    server.on('tlsClientError', (error, socket) => {
      this.#audit.info({ event: 'pairing.handshake', reason: error.message }, 'pairing handshake failed');
      socket.destroy();
    });
    try {
      server.listen(this.#port, this.#host);
      await once(server, 'listening');
    } catch (error) {
      this.#starting = undefined;
      throw new UmsError('UMS_E_USAGE', {
        message: `The pairing port ${this.#port} on ${this.#host} cannot be opened`,
        fault: 'user',
        mend: 'Find out what uses the port, or start the agent with another one.',
        cause: error,
      });
    }
    server.on('error', (error) => this.#audit.error({ err: error }, 'pairing listener failed'));
    this.#server = server;
    return server;
  }

  async #closeListener(): Promise<void> {
    clearTimeout(this.#timer);
    const server = this.#server;
    this.#server = undefined;
    this.#starting = undefined;
    this.#attempts = 0;
    if (server?.listening !== true) return;
    await new Promise<void>((resolve) => server.close(() => resolve()));
    this.#audit.info({ event: 'pairing.closed' }, 'pairing port closed');
  }

  /** Forgets what has expired, and closes the listener once nothing is left to be answered. */
  #sweep(): void {
    this.#dropExpired();
    if (this.#open.size === 0 && this.#sockets.size === 0 && this.#server !== undefined) void this.#closeListener();
    else this.#schedule();
  }

  #schedule(): void {
    clearTimeout(this.#timer);
    if (this.#open.size === 0) return;
    const next = Math.min(...[...this.#open].map((invitation) => invitation.expires_at));
    this.#timer = setTimeout(() => this.#sweep(), Math.max(next - Date.now(), 0) + 1);
    this.#timer.unref();
  }

  async #serve(socket: TLSSocket): Promise<void> {
    const limit = setTimeout(() => socket.destroy(), EXCHANGE_LIMIT_MS);
    this.#sockets.add(socket);
    socket.once('close', () => {
      clearTimeout(limit);
      this.#sockets.delete(socket);
      this.#sweep();
    });
    socket.on('error', (error) =>
      this.#audit.info({ event: 'pairing.broken', reason: error.message }, 'pairing broke'),
    );
    try {
      const from = `the system at ${socket.remoteAddress ?? 'an unknown address'}`;
      const reader = new ByteReader(socket, { from, highWater_bytes: PAIRING_MESSAGE_LIMIT_BYTES });
      await this.#exchange(socket, reader);
    } catch (error) {
      const failure = toUmsError(error);
      this.#audit.warn({ event: 'pairing.refused', code: failure.code, reason: failure.message }, 'pairing refused');
      // The stack of a defect is for the log alone, not for whoever is on the other side.
      const { detail: _detail, ...report } = failure.toReport();
      if (socket.writable) sendMessage(socket, { error: report }, PAIRING_MESSAGE_LIMIT_BYTES);
      // Input that is left unread would turn the close into a reset that overtakes the reason.
      socket.resume();
    }
    socket.end();
  }

  async #exchange(socket: TLSSocket, reader: ByteReader): Promise<void> {
    const hello = await receiveMessage(reader, PAIRING_MESSAGE_LIMIT_BYTES, helloSchema);
    const invitation = this.#claim(hello.secret);
    try {
      await this.#pair(socket, reader, hello);
      this.#open.delete(invitation);
      this.#audit.info({ event: 'invitation.used', peer: hello.name }, 'invitation used');
    } finally {
      invitation.claimed = false;
    }
  }

  /** Compares with every open invitation, in a time that does not depend on the secret. */
  #claim(secret: string): Invitation {
    this.#dropExpired();
    const offered = hash(secret);
    let found: Invitation | undefined;
    for (const invitation of this.#open) {
      if (timingSafeEqual(invitation.secretHash, offered) && !invitation.claimed) found = invitation;
    }
    if (found === undefined) {
      this.#attempts += 1;
      if (this.#attempts >= ATTEMPT_LIMIT) {
        this.#open.clear();
        this.#audit.error({ event: 'invitations.withdrawn', attempts: this.#attempts }, 'too many wrong secrets');
      }
      throw badToken('The pairing token is wrong, used or expired');
    }
    found.claimed = true;
    return found;
  }

  #dropExpired(): void {
    const now = Date.now();
    for (const invitation of this.#open) if (invitation.expires_at <= now) this.#open.delete(invitation);
  }

  async #pair(socket: TLSSocket, reader: ByteReader, hello: Hello): Promise<void> {
    const authority = parseAuthority(hello);
    this.#trust.checkNewPeer(hello.name, authority);
    if (fingerprintOf(authority) === this.#trust.fingerprint) throw malformed(hello.name, 'an authority that is ours');
    const issued = await this.#trust.issue(hello.name, hello.request_pem);
    const { keyPem, requestPem } = await this.#trust.newRequest();
    const offer = {
      port: this.#trust.port,
      certificate_pem: issued.toString(),
      authority_pem: this.#trust.authorityPem,
      request_pem: requestPem,
    };
    sendMessage(socket, offer, PAIRING_MESSAGE_LIMIT_BYTES);
    const answer = await receiveMessage(reader, PAIRING_MESSAGE_LIMIT_BYTES, answerSchema);
    await this.#trust.addPeer({
      name: hello.name,
      address: hello.address,
      port: hello.port,
      authorityPem: hello.authority_pem,
      certificatePem: answer.certificate_pem,
      keyPem,
      issued,
      confirmed: false,
    });
    sendMessage(socket, { done: true }, PAIRING_MESSAGE_LIMIT_BYTES);
    await receiveMessage(reader, PAIRING_MESSAGE_LIMIT_BYTES, committedSchema);
    this.#trust.confirm(hello.name);
  }
}

function parseAuthority(hello: Hello): X509Certificate {
  const authority = parseCertificate(hello.authority_pem);
  if (authority === undefined || !isAuthority(authority)) throw malformed(hello.name, 'an authority that is not valid');
  return authority;
}

function hash(secret: string): Buffer {
  return createHash('sha256').update(secret).digest();
}
