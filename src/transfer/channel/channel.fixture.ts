import { openTrust, type TestTrust, type TestTrustOptions } from '#src/trust/trust.fixture.ts';
import { createLogger } from '#src/telemetry/log.ts';
import { PeerClient } from './client.ts';
import { createPeerHttpServer } from './http.ts';
import { DEFAULT_LIMITS, type PeerLimits } from './limits.ts';
import { PeerServer } from './server.ts';

/** A system with its peer endpoint on the loopback interface, for tests. */
export interface TestSystem extends TestTrust {
  readonly server: PeerServer;
  readonly client: PeerClient;
  /** What the control server saw. */
  readonly requests: string[];
  /** What it answers; a request to /never gets no answer. */
  respond: (path: string) => { status: number; body: string | Buffer };
}

export interface TestOptions extends TestTrustOptions {
  readonly limits?: Partial<PeerLimits>;
}

export async function openSystem(name: string, options: TestOptions = {}): Promise<TestSystem> {
  const { limits: given = {}, ...trustOptions } = options;
  const log = options.log ?? createLogger('silent');
  const limits = { ...DEFAULT_LIMITS, ...given };
  const own = await openTrust(name, trustOptions);
  const requests: string[] = [];
  const httpServer = createPeerHttpServer((request, response) => {
    const path = request.url ?? '';
    requests.push(`${request.method ?? ''} ${path}`);
    request.resume();
    request.on('end', () => {
      if (path === '/never') return;
      const { status, body } = system.respond(path);
      response.writeHead(status, { 'content-type': 'application/json' }).end(body);
    });
  }, limits);
  const { trust } = own;
  const server = new PeerServer({ trust, host: '127.0.0.1', port: trust.port, httpServer, log, limits });
  const client = new PeerClient({ trust, log, idle_ms: limits.idle_ms });
  const system: TestSystem = {
    ...own,
    server,
    client,
    requests,
    respond: () => ({ status: 200, body: '{"ok":true}' }),
    close: async () => {
      client.close();
      httpServer.closeAllConnections();
      httpServer.close();
      await server.close();
      await own.close();
    },
  };
  await server.listen();
  return system;
}
