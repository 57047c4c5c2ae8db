import { setTimeout as delay } from 'node:timers/promises';
import type { Host } from '#lab/host.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { fetchFile, serveFiles } from '../measure/copy.ts';
import { parseTicks, type TickLog } from '../measure/ticks.ts';

export const MEMHOG = 'memhog';
const IMAGE = 'localhost/memhog:latest';
const LOG = '/ticks.log';
const LIMIT_MS = 120_000;
const POLL_MS = 20;

/** Both ends have the very same image before anything is measured: how it travels is not the question here. */
export async function copyImage(from: Host, to: Host): Promise<void> {
  const idOf = async (host: Host) =>
    (
      await host.exec('podman', ['image', 'inspect', '--format', '{{.Id}}', IMAGE], { okExitCodes: [0, 125] })
    ).stdout.trim();
  if ((await idOf(from)) === (await idOf(to))) return;
  await to.exec('podman', ['image', 'rm', '--force', '--ignore', IMAGE], { timeout_ms: LIMIT_MS });
  const archive = '/srv/memhog-image.tar';
  await from.exec('rm', ['-f', archive]);
  await from.exec('podman', ['image', 'save', '--quiet', '--output', archive, IMAGE], { timeout_ms: LIMIT_MS });
  const server = await serveFiles(from);
  try {
    await fetchFile(from, to, archive);
  } finally {
    await server.stop();
  }
  await to.exec('podman', ['image', 'load', '--quiet', '--input', archive], { timeout_ms: LIMIT_MS });
  for (const host of [from, to]) await host.exec('rm', ['-f', archive]);
}

export async function removeMemhog(hosts: readonly Host[]): Promise<void> {
  for (const host of hosts) {
    await host.exec('podman', ['rm', '--force', '--ignore', '--time', '0', MEMHOG], { timeout_ms: LIMIT_MS });
  }
}

/** memhog in a Podman container; it ticks once its memory is filled. */
export async function startMemhog(host: Host, mib: number): Promise<void> {
  await host.exec('podman', ['run', '--detach', '--name', MEMHOG, IMAGE, 'memhog', String(mib), '0', LOG], {
    timeout_ms: LIMIT_MS,
  });
  await untilTicks(host, 300);
}

/** Waits until the log has grown by so many ticks. */
export async function untilTicks(host: Host, more: number): Promise<void> {
  const limit = Date.now() + LIMIT_MS;
  const wanted = (await countTicks(host)) + more;
  while ((await countTicks(host)) < wanted) {
    if (Date.now() > limit) {
      throw new UmsError('UMS_E_LAB', { message: `memhog does not tick on ${host.name}.`, fault: 'service' });
    }
    await delay(POLL_MS);
  }
}

async function countTicks(host: Host): Promise<number> {
  const script = `tail -n 1 ${LOG} 2>/dev/null || true`;
  const { stdout } = await host.exec('podman', ['exec', MEMHOG, 'sh', '-c', script], { timeout_ms: LIMIT_MS });
  return Number(/(\d+) \d+\.\d+/.exec(stdout)?.[1] ?? 0);
}

/** Asks memhog to check its memory, and reads its log. */
export async function readMemhog(host: Host): Promise<TickLog> {
  await host.exec('podman', ['kill', '--signal', 'USR1', MEMHOG], { timeout_ms: LIMIT_MS });
  const limit = Date.now() + LIMIT_MS;
  for (;;) {
    const { stdout } = await host.exec('podman', ['exec', MEMHOG, 'cat', LOG], { timeout_ms: LIMIT_MS });
    const log = parseTicks(stdout);
    if (log.checksums_ok + log.checksums_bad > 0) return log;
    if (Date.now() > limit) {
      throw new UmsError('UMS_E_LAB', { message: 'memhog does not answer with its checksum.', fault: 'service' });
    }
    await delay(POLL_MS);
  }
}
