import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';

/** A TCP proxy for tests that does to connections what bad networks do. */
export class TestProxy {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  /** Bytes from the client after which the fault happens. */
  faultAfter_bytes = Number.POSITIVE_INFINITY;
  fault: 'flip' | 'cut' | 'drop' = 'drop';
  passed_bytes = 0;
  connections = 0;

  private constructor(target: number) {
    this.#server = createServer((client) => this.#serve(client, connect(target, '127.0.0.1')));
  }

  static async open(target: number): Promise<TestProxy> {
    const proxy = new TestProxy(target);
    proxy.#server.listen(0, '127.0.0.1');
    await once(proxy.#server, 'listening');
    return proxy;
  }

  get port(): number {
    const address = this.#server.address();
    if (typeof address !== 'object' || address === null) throw new Error('the proxy does not listen');
    return address.port;
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  #serve(client: Socket, server: Socket): void {
    this.connections += 1;
    for (const [from, to] of [
      [client, server],
      [server, client],
    ] as const) {
      this.#sockets.add(from);
      from.on('error', () => to.destroy());
      from.on('close', () => {
        this.#sockets.delete(from);
        to.destroy();
      });
      from.on('data', (chunk: Buffer) => {
        if (!this.#pass(chunk, from === client)) return;
        if (!to.write(chunk)) from.pause();
      });
      to.on('drain', () => from.resume());
    }
  }

  /** False when the chunk must not go on. */
  #pass(chunk: Buffer, fromClient: boolean): boolean {
    const faulty = this.passed_bytes + (fromClient ? chunk.length : 0) > this.faultAfter_bytes;
    if (fromClient) this.passed_bytes += chunk.length;
    if (!faulty) return true;
    if (this.fault === 'drop') return false;
    if (this.fault === 'cut') {
      for (const socket of this.#sockets) socket.destroy();
      return false;
    }
    if (fromClient) {
      const middle = chunk.length >> 1;
      chunk[middle] = (chunk[middle] ?? 0) ^ 0x10;
    }
    return true;
  }
}
