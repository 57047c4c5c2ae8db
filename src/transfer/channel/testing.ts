import { mkdtempSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join as joinPath } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { createLogger, type Logger } from '#src/telemetry/log.ts';
import { Invitations } from '#src/trust/invitations.ts';
import { join } from '#src/trust/join.ts';
import { Trust, type TrustOptions } from '#src/trust/trust.ts';
import { PeerClient } from './client.ts';
import { createPeerHttpServer } from './http.ts';
import { DEFAULT_LIMITS, type PeerLimits } from './limits.ts';
import { PeerServer } from './server.ts';

/** Systems on the loopback interface, for the tests of this room and of trust. */
export interface TestSystem {
  readonly trust: Trust;
  readonly db: DatabaseSync;
  readonly directory: string;
  readonly invitations: Invitations;
  readonly server: PeerServer;
  readonly client: PeerClient;
  readonly requests: { method: string; path: string }[];
  /** What the control server answers. */
  respond: (path: string) => { status: number; body: string | Buffer };
  close(): Promise<void>;
}

export interface TestOptions extends Partial<Pick<TrustOptions, 'leafLife_ms' | 'rotationGrace_ms'>> {
  readonly limits?: Partial<PeerLimits>;
  readonly log?: Logger;
}

const ports = { next: 0 };

/** A port for a listener that has to know it before it listens. Below the range that the kernel hands out itself. */
function nextPort(): number {
  ports.next += 1;
  return 20_000 + ((process.pid * 64 + ports.next) % 12_000);
}

export async function openSystem(name: string, options: TestOptions = {}): Promise<TestSystem> {
  const directory = mkdtempSync(joinPath(tmpdir(), 'ums-trust-'));
  const log = options.log ?? createLogger('silent');
  const db = new DatabaseSync(':memory:');
  const port = nextPort();
  const trust = await Trust.open({
    directory: joinPath(directory, 'trust'),
    db,
    name,
    address: '127.0.0.1',
    port,
    log,
    ...(options.leafLife_ms === undefined ? {} : { leafLife_ms: options.leafLife_ms }),
    ...(options.rotationGrace_ms === undefined ? {} : { rotationGrace_ms: options.rotationGrace_ms }),
  });
  const limits = { ...DEFAULT_LIMITS, ...options.limits };
  const requests: { method: string; path: string }[] = [];
  const httpServer = createPeerHttpServer((request, response) => {
    const path = request.url ?? '';
    requests.push({ method: request.method ?? '', path });
    request.resume();
    request.on('end', () => {
      if (path === '/never') return;
      const { status, body } = system.respond(path);
      response.writeHead(status, { 'content-type': 'application/json' }).end(body);
    });
  }, limits);
  const server = new PeerServer({ trust, host: '127.0.0.1', port, httpServer, log, limits });
  const client = new PeerClient({ trust, log, idle_ms: limits.idle_ms });
  const invitations = new Invitations({ trust, host: '127.0.0.1', port: 0, log });
  const system: TestSystem = {
    trust,
    db,
    directory,
    invitations,
    server,
    client,
    requests,
    respond: () => ({ status: 200, body: '{"ok":true}' }),
    close: async () => {
      client.close();
      httpServer.closeAllConnections();
      httpServer.close();
      await invitations.close();
      await server.close();
      db.close();
      await rm(directory, { recursive: true, force: true });
    },
  };
  return system;
}

export async function pair(inviting: TestSystem, joining: TestSystem): Promise<void> {
  const { token } = await inviting.invitations.invite({ ttl_s: 60 });
  await join(joining.trust, token);
}

/** Resolves when `condition` holds; throws when it does not within the limit. */
export async function until(condition: () => boolean, what: string, limit_ms = 5000): Promise<void> {
  const end = Date.now() + limit_ms;
  while (!condition()) {
    if (Date.now() > end) throw new Error(`not within ${limit_ms} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
