import { createServer, type Server, type Socket } from 'node:net';
import { toRefusal } from './contract.ts';
import { closeServer, type Front, type FrontParts, listen, track } from './front.ts';
import { join } from './pass.ts';
import { reset, tune } from './streams.ts';

/** Passes plain TCP connections. A waiting one is not read from, so its bytes wait in the kernel and at the client. */
export class TcpFront implements Front {
  readonly record: FrontParts['record'];
  readonly #parts: FrontParts;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #waiting = 0;

  constructor(parts: FrontParts) {
    this.record = parts.record;
    this.#parts = parts;
    this.#server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) => void this.#pass(socket));
    this.#server.maxConnections = parts.limits.maxConnections;
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
    for (const socket of this.#sockets) reset(socket);
    await done;
  }

  async #pass(client: Socket): Promise<void> {
    const { counters, gate, limits, record } = this.#parts;
    const gone = new AbortController();
    const onClose = (): void => gone.abort();
    track(this.#sockets, client);
    client.on('error', () => client.destroy());
    client.once('close', onClose);
    tune(client);
    this.#waiting += 1;
    try {
      const deadline = performance.now() + record.holdLimit_ms;
      const ask = { port: record.port, deadline, hops: limits.hops, gone: gone.signal };
      await gate().open(ask, (lease) => join(client, lease, limits));
      counters.add('passed');
    } catch (thrown) {
      counters.refused(toRefusal(thrown), { frontman: record.id, service: record.service });
      reset(client);
    } finally {
      client.off('close', onClose);
      this.#waiting -= 1;
    }
  }
}
