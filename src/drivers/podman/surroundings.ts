import { readFile } from 'node:fs/promises';
import type { Tree } from '../contract.ts';
import { isMissing } from '../oci/cgroup.ts';
import { inspectVolume } from './cli.ts';
import { mountedTrees, unique } from '../oci/mount-trees.ts';
import { hasOwnShm, shmTree, upperTree } from './create.ts';
import type { Surroundings } from './describe.ts';
import { type Inspect, ociConfigSchema, type Volume } from './schema.ts';

/** What a container has around it: directories, volumes, and what only its runtime's configuration tells. */
export function sourceTrees(inspect: Inspect): Tree[] {
  return unique([
    upperTree(inspect),
    ...(hasOwnShm(inspect) ? [shmTree(inspect)] : []),
    ...mountedTrees(inspect.Mounts),
  ]);
}

export function namedVolumes(inspect: Inspect): string[] {
  return inspect.Mounts.flatMap((mount) => (mount.Type === 'volume' && mount.Name !== undefined ? [mount.Name] : []));
}

export async function volumesOf(inspect: Inspect): Promise<Map<string, Volume>> {
  const volumes = new Map<string, Volume>();
  for (const name of namedVolumes(inspect)) {
    const volume = await inspectVolume(name);
    if (volume !== undefined) volumes.set(name, volume);
  }
  return volumes;
}

export async function configOf(inspect: Inspect): Promise<Pick<Surroundings, 'sysctls' | 'devices'>> {
  if (inspect.OCIConfigPath === '') return { sysctls: {}, devices: [] };
  try {
    const { linux } = ociConfigSchema.parse(JSON.parse(await readFile(inspect.OCIConfigPath, 'utf8')));
    return { sysctls: linux?.sysctl ?? {}, devices: (linux?.devices ?? []).map((device) => device.path) };
  } catch (error) {
    // A container that never ran has no configuration yet, and no state to move either.
    if (isMissing(error)) return { sysctls: {}, devices: [] };
    throw error;
  }
}
