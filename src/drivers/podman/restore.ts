import { dirname, join } from 'node:path';
import type { EngineStart } from '../oci/engine-restore.ts';
import { type LogFile, LINES_IMAGE } from '../oci/log-file.ts';
import type { RestoreArea } from '../oci/restore-area.ts';
import { RUNC_ROOT } from '../oci/runtime.ts';
import { change } from './cli.ts';
import { upperTree } from './create.ts';
import type { Inspect } from './schema.ts';

const LOG_LIMIT_BYTES = 16 * 1024 * 1024;

/** `podman init` brings the container up to where it has only to be let go. */
export function startOf(area: RestoreArea, inspect: Inspect, shared: readonly string[]): EngineStart {
  const id = inspect.Id;
  return {
    container: { root: RUNC_ROOT, id },
    settings: { ownNetwork: inspect.HostConfig.NetworkMode === 'none' },
    launch: async (limit_ms) => {
      await change(['init', id], { env: { CONTAINERS_CONF_OVERRIDE: area.override(id) }, timeout_ms: limit_ms });
    },
    merged: join(dirname(upperTree(inspect).path), 'merged'),
    log: logOfContainer(inspect),
    kept: inspect.Mounts.flatMap((mount) =>
      mount.Type !== 'volume' || (mount.Name !== undefined && shared.includes(mount.Name)) ? [] : [mount.Source],
    ),
  };
}

/** The log, if it is a file that can move. */
export function logOfContainer(inspect: Inspect): LogFile | undefined {
  const { Type: type, Path: path } = inspect.HostConfig.LogConfig;
  return type === 'k8s-file' && path !== '' ? { path, image: LINES_IMAGE, limit_bytes: LOG_LIMIT_BYTES } : undefined;
}
