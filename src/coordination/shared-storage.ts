import { statfs } from 'node:fs/promises';
import type { Finding, ServiceDescription } from '#src/drivers/contract.ts';
import type { Specification } from '#src/drivers/specification.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { run } from '#src/telemetry/exec.ts';

/** A volume with this label is shared without being named: `podman volume create --label ums.shared=true …`. */
const SHARED_LABEL = 'ums.shared';

/**
 * Volumes that both systems mount from the same storage (NFS, a cluster's file system). Their content is there already:
 * it is never copied and, as it is one for both, never removed.
 */
export function applySharedChoice(specification: Specification, names: readonly string[]): Specification {
  return {
    ...specification,
    mounts: specification.mounts.map((mount) =>
      mount.kind === 'volume'
        ? { ...mount, shared: !mount.anonymous && (names.includes(mount.name) || isLabelled(mount.labels)) }
        : mount,
    ),
  };
}

function isLabelled(labels: Readonly<Record<string, string>>): boolean {
  return labels[SHARED_LABEL] === 'true';
}

/** Which of its volumes have moved, and which stay where they are. */
export function volumesOf(specification: Specification): { moved: string[]; shared: string[] } {
  const volumes = specification.mounts.flatMap((mount) => (mount.kind === 'volume' ? [mount] : []));
  const names = (shared: boolean) => volumes.filter((volume) => volume.shared === shared).map(({ name }) => name);
  return { moved: names(false), shared: names(true) };
}

/** What was declared and is not so, and what must be declared. */
export function sharedFindings(specification: Specification, names: readonly string[]): Finding[] {
  const volumes = specification.mounts.flatMap((mount) => (mount.kind === 'volume' ? [mount] : []));
  const known = new Set(volumes.filter((volume) => !volume.anonymous).map((volume) => volume.name));
  const unknown = names
    .filter((name) => !known.has(name))
    .map(
      (name): Finding => ({
        severity: 'error',
        id: 'volume.unknown',
        what: `${specification.name} has no volume named ${name}.`,
        why: 'It was named with --shared-volume.',
        mend: known.size === 0 ? 'Leave the option out.' : `Its volumes: ${[...known].join(', ')}.`,
      }),
    );
  const undeclared = volumes
    .filter((volume) => !volume.plain && !volume.shared)
    .map(
      (volume): Finding => ({
        severity: 'error',
        id: 'volume.options',
        what: `Volume ${volume.name} is not plain storage of this host: it has a driver or driver options.`,
        why: 'ums cannot know whether the destination reaches the same storage, and does not copy it.',
        mend: `If it does, make a volume of that name there and say --shared-volume ${volume.name}.`,
      }),
    );
  return [...unknown, ...undeclared];
}

/**
 * Types of file systems (statfs(2), and the sources of their makers) that another host may have mounted too: NFS, CIFS,
 * SMB2, Ceph, FUSE (GlusterFS and others), 9P, Lustre, OCFS2, GFS2, AFS.
 */
const NETWORK_TYPES = new Set([
  0x6969, 0xff534d42, 0xfe534d42, 0x00c36400, 0x65735546, 0x01021997, 0x0bd00bd0, 0x7461636f, 0x01161970, 0x5346414f,
]);

/** Where what the service wrote must reach the storage before the destination reads it. */
export async function sharedPaths(description: ServiceDescription): Promise<string[]> {
  const volumes = new Set(volumesOf(description.specification).shared.map((name) => `volume:${name}`));
  const binds = description.specification.mounts.flatMap((mount) =>
    mount.kind === 'bind' && mount.transfer === 'expect' && !mount.readOnly ? [`bind:${mount.source}`] : [],
  );
  const paths: string[] = [];
  for (const tree of description.trees) {
    if (volumes.has(tree.id)) paths.push(tree.path);
    else if (binds.includes(tree.id) && NETWORK_TYPES.has((await statfs(tree.path)).type)) paths.push(tree.path);
  }
  return paths;
}

const SYNC_TIMEOUT_MS = 120_000;

/** Has the kernel write out what it still holds of these file systems; without any it does nothing. */
export async function syncShared(paths: readonly string[], signal: AbortSignal): Promise<void> {
  if (paths.length === 0) return;
  try {
    await run('sync', ['--file-system', ...paths], { timeout_ms: SYNC_TIMEOUT_MS, signal });
  } catch (error) {
    signal.throwIfAborted();
    throw new UmsError('UMS_E_TRANSFER', {
      message: `What the service wrote to its shared volumes could not be written out (${paths.join(', ')}).`,
      fault: 'source',
      mend: 'Look at the storage: whether its server answers and has room.',
      cause: error,
    });
  }
}
