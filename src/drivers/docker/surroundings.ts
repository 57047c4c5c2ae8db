import { dirname, join } from 'node:path';
import { UmsError } from '#src/telemetry/errors.ts';
import { inspectVolume } from './api.ts';
import { nameOf } from './describe.ts';
import type { DockerHandle } from './handle.ts';
import type { Inspect, Volume } from './schema.ts';

/** Where dockerd keeps what does not survive a boot, unless it was told otherwise. */
const EXEC_ROOT = '/var/run/docker';

/**
 * Docker's shim runs every runtime that is given by a path with this `--root`, whatever the runtime is called. The name of
 * a network namespace's file tells where dockerd was told to keep such things.
 */
export function runtimeRoot(inspect: Inspect): string {
  const { SandboxKey: key } = inspect.NetworkSettings;
  const execRoot = key.includes('/netns/') ? dirname(dirname(key)) : EXEC_ROOT;
  return join(execRoot, 'runtime-runc', 'moby');
}

/** Every network namespace but the host's is furnished by Docker's hook, when the runtime has made it. */
function hasHookedNetwork(inspect: Inspect): boolean {
  return inspect.HostConfig.NetworkMode !== 'host';
}

/** The directory that it writes to. */
export function upperPath(inspect: Inspect): string {
  const path = inspect.GraphDriver.Data['UpperDir'];
  if (path !== undefined) return path;
  throw new UmsError('UMS_E_ENGINE', {
    message: `Docker does not say where ${nameOf(inspect)} writes`,
    fault: 'ums',
    mend: 'Use the overlay2 storage driver.',
  });
}

/** Where this host reaches it; undefined while it does not run. */
export function addressOf(inspect: Inspect): string | undefined {
  if (inspect.State.Pid === 0) return undefined;
  if (inspect.HostConfig.NetworkMode === 'host') return '127.0.0.1';
  const { IPAddress: own, Networks: networks } = inspect.NetworkSettings;
  return [own, ...Object.values(networks).map(({ IPAddress }) => IPAddress)].find((address) => address !== '');
}

export function handleOf(inspect: Inspect): DockerHandle {
  return {
    v: 1,
    engine: 'docker',
    id: inspect.Id,
    name: nameOf(inspect),
    root: runtimeRoot(inspect),
    hookedNetwork: hasHookedNetwork(inspect),
    hostname: inspect.HostnamePath,
  };
}

export async function volumesOf(inspect: Inspect): Promise<Map<string, Volume>> {
  const volumes = new Map<string, Volume>();
  for (const { Type: type, Name: name } of inspect.Mounts) {
    if (type !== 'volume' || name === undefined) continue;
    const volume = await inspectVolume(name);
    if (volume !== undefined) volumes.set(name, volume);
  }
  return volumes;
}
