import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { z } from 'zod';
import { agentRequest } from '#lab/agents.ts';
import type { Host } from '#lab/host.ts';
import { PATIENCE } from '#lab/patience.ts';
import { type Migration, migrationEventSchema, migrationSchema } from '#src/coordination/schema.ts';
import type { MigrationState, Role } from '#src/coordination/states.ts';

/** What end-to-end tests do with agents and services; every wait has a limit and fails loudly. */
const POLL_MS = 50;

export async function until<T>(what: string, limit_ms: number, probe: () => Promise<T | undefined>): Promise<T> {
  const end = Date.now() + limit_ms * PATIENCE;
  let last: unknown = 'nothing yet';
  while (Date.now() < end) {
    try {
      const value = await probe();
      if (value !== undefined) return value;
    } catch (error) {
      last = error;
    }
    await sleep(POLL_MS);
  }
  throw new Error(
    `${what}: not within ${limit_ms * PATIENCE} ms (last: ${last instanceof Error ? last.message : String(last)})`,
  );
}

export async function migrate(from: Host, service: string, to: string, options: object = {}): Promise<Migration> {
  return migrationSchema.parse(await agentRequest(from, 'POST', '/v1/migrations', { service, to, options }));
}

export async function migration(host: Host, id: string): Promise<Migration> {
  return migrationSchema.parse(await agentRequest(host, 'GET', `/v1/migrations/${id}`));
}

export function ended(host: Host, id: string, limit_ms = 60_000): Promise<Migration> {
  return until(`end of ${id} on ${host.name}`, limit_ms, async () => {
    const now = await migration(host, id);
    return now.ended_at === null ? undefined : now;
  });
}

export async function migrateToEnd(from: Host, service: string, to: string, options: object = {}): Promise<Migration> {
  const { id } = await migrate(from, service, to, options);
  return ended(from, id, 120_000);
}

export interface Place {
  role: Role;
  state: MigrationState;
  point: string;
  /** Only migrations of this service halt. */
  service?: string;
}

export async function setBreakpoint(host: Host, place: Place): Promise<void> {
  await agentRequest(host, 'POST', '/v1/debug/breakpoints', place);
}

export async function clearBreakpoint(host: Host, place: Place): Promise<void> {
  await agentRequest(host, 'POST', '/v1/debug/breakpoints/clear', place);
}

export async function clearBreakpoints(host: Host): Promise<void> {
  await agentRequest(host, 'POST', '/v1/debug/breakpoints/clear');
}

/** Resolves with true when the migration halts at a breakpoint, with false when it ended without reaching it. */
export function reachedBreakpoint(
  host: Host,
  source: Host,
  id: string,
  state: MigrationState,
  point: string,
  limit_ms = 60_000,
): Promise<boolean> {
  return until(`breakpoint of ${id} on ${host.name}`, limit_ms, async () => {
    const response = await events(host, id).catch(() => []);
    if (response.some((event) => event.event === 'breakpoint' && event.state === state && event.point === point)) {
      return true;
    }
    return (await migration(source, id)).ended_at === null ? undefined : false;
  });
}

/** The migration's events so far. The stream is live until the end, so it is read with a time limit of its own. */
export async function events(host: Host, id: string): Promise<z.infer<typeof migrationEventSchema>[]> {
  const { request } = await import('node:http');
  const text = await new Promise<string>((resolve, reject) => {
    let body = '';
    const call = request({ socketPath: host.socketPath, path: `/v1/migrations/${id}/events` }, (response) => {
      response.setEncoding('utf8');
      response.on('data', (chunk: string) => (body += chunk));
      response.on('end', () => resolve(body));
      response.on('error', reject);
      setTimeout(() => {
        resolve(body);
        call.destroy();
      }, 150);
    });
    call.on('error', reject);
    call.end();
  });
  return text
    .split('\n')
    .slice(0, -1)
    .map((line) => migrationEventSchema.parse(JSON.parse(line)));
}

const psSchema = z.array(z.object({ Id: z.string(), Names: z.array(z.string()), State: z.string() }));
export type Container = z.infer<typeof psSchema>[number];

export async function containers(host: Host, name: string): Promise<Container[]> {
  const { stdout } = await host.exec('podman', ['ps', '--all', '--format', 'json'], { timeout_ms: 20_000 });
  return psSchema.parse(JSON.parse(stdout)).filter((container) => container.Names.includes(name));
}

/** The last tick that the memhog of that name logged. */
export async function lastTick(host: Host, name: string): Promise<number> {
  const { stdout } = await host.exec('podman', ['exec', name, 'tail', '-n', '4', '/tmp/ticks'], { timeout_ms: 20_000 });
  const ticks = [...stdout.matchAll(/^tick (\d+) /gm)].map((match) => Number(match[1]));
  const last = ticks.at(-1);
  assert.ok(last !== undefined, `no tick in ${JSON.stringify(stdout)}`);
  return last;
}

export async function startMemhog(host: Host, name: string, mib: number, dirty_kb_s = 100): Promise<void> {
  const images = await host.exec('podman', ['images', '--quiet', 'memhog'], { timeout_ms: 20_000 });
  if (images.stdout.trim() === '') {
    await host.exec('podman', [
      'import',
      '--change',
      'ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin',
      '/opt/images/memhog.tar',
      'memhog',
    ]);
  }
  const workload = ['memhog', String(mib), String(dirty_kb_s), '/tmp/ticks'];
  await host.exec('podman', ['run', '--detach', '--name', name, 'memhog', ...workload]);
  await until(`${name} ticks`, 20_000, async () => ((await lastTick(host, name)) > 0 ? true : undefined));
}

/** Lets memhog read all of its memory; fails if one word is not what it must be. */
export async function checksumOk(host: Host, name: string): Promise<void> {
  await host.exec('podman', ['kill', '--signal', 'USR1', name], { timeout_ms: 20_000 });
  await until(`checksum of ${name}`, 30_000, async () => {
    const { stdout } = await host.exec('podman', ['exec', name, 'grep', '^checksum', '/tmp/ticks'], {
      timeout_ms: 20_000,
      okExitCodes: [0, 1],
    });
    assert.ok(!stdout.includes('BAD'), stdout);
    return stdout.includes('checksum ok') ? true : undefined;
  });
}

/** Nothing of any migration is left in memory: neither files nor descriptors, which keep the memory of removed files. */
export async function nothingStaged(host: Host): Promise<void> {
  const script = `ls /run/ums/staging; ls -l /proc/[0-9]*/fd 2>/dev/null | grep '/run/ums/staging/.*deleted' || true`;
  await until(`staging of ${host.name} is empty`, 20_000, async () => {
    const { stdout } = await host.exec('sh', ['-c', script]);
    if (stdout.trim() !== '') throw new Error(stdout);
    return true;
  });
}
