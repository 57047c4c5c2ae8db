import type { Host } from '#lab/host.ts';
import type { Lab } from '#lab/lab.ts';
import { agentOf } from '../moves.ts';

export const REDIS = 'redis';
export const REDIS_PORT = 6379;
const START_LIMIT_MS = 60_000;

/** Redis' own files are not the point: no snapshots, everything in memory. DEBUG is for the checksum of the keys. */
const ARGS = ['--bind', '0.0.0.0', '--protected-mode', 'no', '--save', '', '--enable-debug-command', 'yes'];

/** Takes away what an earlier run may have left: the container on every host, and its Frontmen. */
export async function removeRedis(lab: Lab): Promise<void> {
  await Promise.all(lab.hosts.map((host) => removeFrom(lab, host)));
}

async function removeFrom(lab: Lab, host: Host): Promise<void> {
  const client = agentOf(lab, host.name);
  try {
    for (const frontman of await client.frontmen()) {
      if (frontman.listen.port === REDIS_PORT) await client.removeFrontman(frontman.id);
    }
  } finally {
    await client.close();
  }
  await host.exec('podman', ['rm', '--force', '--ignore', '--time', '0', REDIS], { timeout_ms: START_LIMIT_MS });
}

/** Debian's Redis in a Podman container on a host, with a Frontman in front of it at the host's address. */
export async function startRedis(lab: Lab, hostName: string): Promise<{ address: string; port: number }> {
  const host = lab.host(hostName);
  const image = await host.importImage(REDIS);
  const args = ['run', '--detach', '--name', REDIS, '--label', 'app=demo', image, 'redis-server', ...ARGS];
  await host.exec('podman', args, { timeout_ms: START_LIMIT_MS });
  const client = agentOf(lab, hostName);
  try {
    const frontman = await client.addFrontman({
      service: REDIS,
      listen: { address: '0.0.0.0', port: REDIS_PORT },
      port: REDIS_PORT,
      mode: 'tcp',
    });
    return { address: host.address, port: frontman.listen.port };
  } finally {
    await client.close();
  }
}
