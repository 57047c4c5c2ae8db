import { mkdtempSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join as joinPath } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { createLogger, type Logger } from '#src/telemetry/log.ts';
import { Invitations } from './invitations.ts';
import { join } from './join.ts';
import { Trust, type TrustOptions } from './trust.ts';

/** Systems on the loopback interface, for tests. */
export interface TestTrust {
  readonly trust: Trust;
  readonly db: DatabaseSync;
  readonly directory: string;
  readonly invitations: Invitations;
  close(): Promise<void>;
}

export interface TestTrustOptions extends Partial<Pick<TrustOptions, 'leafLife_ms'>> {
  readonly log?: Logger;
}

const ports = { next: 0 };

/** A port for a listener that has to know it before it listens. Below the range that the kernel hands out itself. */
function nextPort(): number {
  ports.next += 1;
  return 20_000 + ((process.pid * 64 + ports.next) % 12_000);
}

export async function openTrust(name: string, options: TestTrustOptions = {}): Promise<TestTrust> {
  const { log = createLogger('silent'), ...lives } = options;
  const directory = mkdtempSync(joinPath(tmpdir(), 'ums-trust-'));
  const db = new DatabaseSync(':memory:');
  const own = { directory: joinPath(directory, 'trust'), db, name, address: '127.0.0.1', port: nextPort(), log };
  const trust = await Trust.open({ ...own, ...lives });
  const invitations = new Invitations({ trust, host: '127.0.0.1', port: 0, log });
  return {
    trust,
    db,
    directory,
    invitations,
    close: async () => {
      await invitations.close();
      db.close();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

export async function pair(inviting: TestTrust, joining: TestTrust): Promise<void> {
  const { token } = await inviting.invitations.invite({ ttl_s: 60 });
  await join(joining.trust, token);
  await until(() => inviting.trust.peer(joining.trust.name)?.confirmed_at !== null, 'the pairing is confirmed');
}

/** Resolves when `condition` holds; throws when it does not within the limit. */
export async function until(condition: () => boolean, what: string, limit_ms = 5000): Promise<void> {
  const end = Date.now() + limit_ms;
  while (!condition()) {
    if (Date.now() > end) throw new Error(`not within ${limit_ms} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** The code of the error that a promise ends with, and its message for the reader of a failed test. */
export async function failureOf(promise: Promise<unknown>): Promise<{ code: string; message: string }> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof Error && 'code' in error) return { code: String(error.code), message: error.message };
    throw error;
  }
  return { code: 'none', message: 'it succeeded' };
}
