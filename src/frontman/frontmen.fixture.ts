import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { DatabaseSync } from 'node:sqlite';
import type { Duplex } from 'node:stream';
import { z } from 'zod';
import { createLogger } from '#src/telemetry/log.ts';
import type { Limits, PeerStreamHeader } from './contract.ts';
import { Frontmen } from './frontmen.ts';

export const SERVICE = 'uid-of-the-service';

export function listening(server: Server): Promise<number> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, '127.0.0.1', () => resolve(portOf(server)));
  });
}

function portOf(server: Server): number {
  const address: string | AddressInfo | null = server.address();
  if (address === null || typeof address === 'string') throw new Error('the server has no port');
  return address.port;
}

/** A port nobody listens on at the moment. */
export async function freePort(): Promise<number> {
  const server = createServer();
  const port = await listening(server);
  await new Promise<void>((resolve) => server.close(() => resolve()));
  return port;
}

export async function until(condition: () => boolean, what: string, limit_ms = 5000): Promise<void> {
  const end = performance.now() + limit_ms;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`waited in vain for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

const welcomeSchema = z.object({ from: z.string(), header: z.unknown() });

/**
 * One system with its Frontmen, and a loopback socket in place of the mutual TLS between agents. The service's address
 * is what `address` says, so that tests can put the service on a system and take it away.
 */
export class FakePeer {
  readonly name: string;
  readonly database = new DatabaseSync(':memory:');
  address: string | undefined;
  frontmen: Frontmen;
  readonly headers: PeerStreamHeader[] = [];
  readonly #net: Map<string, FakePeer>;
  readonly #limits: Partial<Limits>;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #port = 0;

  constructor(name: string, net: Map<string, FakePeer>, limits: Partial<Limits> = {}) {
    this.name = name;
    this.#net = net;
    this.#limits = limits;
    this.frontmen = this.#newFrontmen();
    this.#server = createServer({ allowHalfOpen: true }, (socket) => this.#welcome(socket));
    net.set(name, this);
  }

  async start(): Promise<this> {
    this.#port = await listening(this.#server);
    await this.frontmen.start();
    return this;
  }

  /** As if the agent had been started anew: everything but the database is lost. */
  async restart(): Promise<void> {
    await this.frontmen.close();
    this.frontmen = this.#newFrontmen();
    await this.frontmen.start();
  }

  async close(): Promise<void> {
    await this.frontmen.close();
    for (const socket of this.#sockets) socket.destroy();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  #newFrontmen(): Frontmen {
    return new Frontmen({
      database: this.database,
      openPeerStream: (peer, header, { signal }) => this.#open(peer, header, signal),
      localAddress: async () => this.address,
      log: createLogger('silent'),
      limits: this.#limits,
    });
  }

  async #open(peer: string, header: PeerStreamHeader, signal: AbortSignal): Promise<Duplex> {
    const other = this.#net.get(peer);
    if (other === undefined) throw new Error(`no system ${peer}`);
    other.headers.push(header);
    const socket = connect({ host: '127.0.0.1', port: other.#port, allowHalfOpen: true, signal });
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve);
      socket.once('error', reject);
    });
    socket.write(`${JSON.stringify({ from: this.name, header })}\n`);
    return socket;
  }

  #welcome(socket: Socket): void {
    this.#sockets.add(socket);
    socket.once('close', () => this.#sockets.delete(socket));
    socket.on('error', () => socket.destroy());
    let seen = Buffer.alloc(0);
    const onData = (chunk: Buffer): void => {
      seen = Buffer.concat([seen, chunk]);
      const end = seen.indexOf(10);
      if (end < 0) return;
      socket.off('data', onData);
      socket.pause();
      const rest = seen.subarray(end + 1);
      if (rest.length > 0) socket.unshift(rest);
      const { from, header } = welcomeSchema.parse(JSON.parse(seen.subarray(0, end).toString()));
      this.frontmen.acceptPeerStream(from, header, socket);
    };
    socket.on('data', onData);
  }
}

/**
 * A service that answers each line with itself and remembers it. While it is frozen nothing may reach it: a byte that
 * does is remembered in `violations`. Both copies of a moving service share `lines`, as memory moves with the service.
 */
export class LineService {
  readonly lines: string[];
  frozen = true;
  violations = 0;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  constructor(lines: string[]) {
    this.lines = lines;
    this.#server = createServer((socket) => this.#serve(socket));
  }

  get port(): number {
    return portOf(this.#server);
  }

  listen(port: number, host: string): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(port, host, () => resolve());
    });
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  #serve(socket: Socket): void {
    this.#sockets.add(socket);
    let partial = '';
    socket.on('error', () => socket.destroy());
    socket.once('close', () => this.#sockets.delete(socket));
    socket.setEncoding('latin1');
    socket.on('data', (text: string) => {
      if (this.frozen) this.violations += 1;
      const parts = (partial + text).split('\n');
      partial = parts.pop() ?? '';
      for (const line of parts) {
        this.lines.push(line);
        socket.write(`${line}\n`);
      }
    });
  }
}

/** Sends numbered lines one after another and, when its connection ends, sends the unanswered one again on a new one. */
export class LineClient {
  readonly answered: string[] = [];
  reconnects = 0;
  readonly #port: number;
  readonly #name: string;
  #stop = false;

  constructor(port: number, name: string) {
    this.#port = port;
    this.#name = name;
  }

  stop(): void {
    this.#stop = true;
  }

  async run(): Promise<void> {
    let number = 0;
    while (!this.#stop) {
      const socket = connect({ host: '127.0.0.1', port: this.#port, noDelay: true });
      socket.setEncoding('latin1');
      number = await this.#talk(socket, number);
      if (!this.#stop) this.reconnects += 1;
    }
  }

  #talk(socket: Socket, from: number): Promise<number> {
    let number = from;
    let partial = '';
    return new Promise((resolve) => {
      const send = (): void => {
        if (this.#stop) socket.end();
        else socket.write(`${this.#name}-${number}\n`);
      };
      socket.on('connect', send);
      socket.on('data', (text: string) => {
        partial += text;
        if (!partial.endsWith('\n')) return;
        if (partial !== `${this.#name}-${number}\n`) throw new Error(`wrong answer ${partial}`);
        this.answered.push(partial.trim());
        partial = '';
        number += 1;
        send();
      });
      socket.on('error', () => socket.destroy());
      socket.on('close', () => resolve(number));
    });
  }
}
