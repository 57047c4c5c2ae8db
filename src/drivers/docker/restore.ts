import { dirname, join } from 'node:path';
import { runDetached } from '../oci/child.ts';
import type { EngineStart } from '../oci/engine-restore.ts';
import type { LogFile } from '../oci/log-file.ts';
import type { RestoreArea } from '../oci/restore-area.ts';
import { linkRuntime } from '../oci/runtime-links.ts';
import { upperTree } from './create.ts';
import type { DockerHandle } from './handle.ts';
import type { Inspect } from './schema.ts';

const LOG_LIMIT_BYTES = 2 ** 20;

/**
 * `docker start` creates the processes and starts them in one step, so they stay frozen after it; the commit lets them go.
 * It is run by its command, in a session of its own: over the socket it would end with the agent that asked.
 */
export function startOf(area: RestoreArea, inspect: Inspect, handle: DockerHandle, dockerRoot: string): EngineStart {
  const { id } = handle;
  return {
    container: handle,
    settings: { ownNetwork: inspect.HostConfig.NetworkMode === 'none', staysFrozen: true },
    launch: async (limit_ms) => {
      await linkRuntime(area, id);
      await runDetached('docker', ['start', id], { timeout_ms: limit_ms, onTimeout: 'terminate' });
    },
    merged: join(dirname(upperTree(inspect).path), 'merged'),
    log: logOfContainer(inspect, dockerRoot),
    kept: [],
  };
}

/** The log, if it is a file that can move. Docker says where it is only once it has written to it. */
export function logOfContainer(inspect: Inspect, dockerRoot: string): LogFile | undefined {
  if (inspect.HostConfig.LogConfig.Type !== 'json-file') return undefined;
  const path = join(dockerRoot, 'containers', inspect.Id, `${inspect.Id}-json.log`);
  const rotated = sizeOf(inspect.HostConfig.LogConfig.Config['max-size'] ?? '');
  // A log that is as long as it may become would be rotated away by its next line.
  const limit_bytes = Math.min(LOG_LIMIT_BYTES, Math.floor((rotated ?? Number.POSITIVE_INFINITY) / 2));
  return { path, image: 'docker-log.img', limit_bytes, reserves: true };
}

const UNITS: Record<string, number> = { '': 1, b: 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30 };

/** `10m` and the like, in bytes; undefined for no limit. */
function sizeOf(text: string): number | undefined {
  const [, digits, unit = ''] = /^(\d+)\s*([bkmg]?)b?$/i.exec(text) ?? [];
  return digits === undefined ? undefined : Number(digits) * (UNITS[unit.toLowerCase()] ?? 1);
}
