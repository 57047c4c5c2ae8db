import { chmod, chown, copyFile, open, rm, stat, utimes } from 'node:fs/promises';
import { join } from 'node:path';
import { criuFailure } from '#src/checkpoint/errors.ts';
import { UmsError, toUmsError } from '#src/telemetry/errors.ts';
import type { RestoreRequest } from '../contract.ts';
import { isMissing } from '../oci/cgroup.ts';
import { requireAllFrozen } from '../oci/frozen.ts';
import { logOf } from '../oci/dump.ts';
import { entriesOf } from '../oci/files.ts';
import type { RestoreArea } from '../oci/restore-area.ts';
import { initPid, requireProgram, RUNC_ROOT } from '../oci/runtime.ts';
import { change } from './cli.ts';
import type { Inspect } from './schema.ts';

/** Bytes of the source's log that travel with the images; what is older stays at the source. */
const LOG_LIMIT_BYTES = 16 * 1024 * 1024;
/** The log's name among the images; it follows their naming, so that it travels and is checked as they are. */
const LOG_IMAGE = 'podman-log.img';

/** Puts the end of the container's log beside the images. */
export async function saveLog(inspect: Inspect, imagesDir: string): Promise<void> {
  const path = inspect.HostConfig.LogConfig.Path;
  if (inspect.HostConfig.LogConfig.Type !== 'k8s-file' || path === '') return;
  let size: number;
  try {
    size = (await stat(path)).size;
  } catch (error) {
    if (isMissing(error)) return;
    throw error;
  }
  const target = join(imagesDir, LOG_IMAGE);
  if (size <= LOG_LIMIT_BYTES) {
    await copyFile(path, target);
    return;
  }
  const source = await open(path, 'r');
  try {
    const bytes = Buffer.alloc(LOG_LIMIT_BYTES);
    const { bytesRead } = await source.read(bytes, 0, LOG_LIMIT_BYTES, size - LOG_LIMIT_BYTES);
    const end = bytes.subarray(0, bytesRead);
    const sink = await open(target, 'w', 0o600);
    try {
      // From the first whole line on.
      await sink.writeFile(end.subarray(end.indexOf(0x0a) + 1));
    } finally {
      await sink.close();
    }
  } finally {
    await source.close();
  }
}

async function placeLog(inspect: Inspect, imagesDir: string): Promise<void> {
  const { Type: type, Path: path } = inspect.HostConfig.LogConfig;
  if (type !== 'k8s-file' || path === '') return;
  try {
    await copyFile(join(imagesDir, LOG_IMAGE), path);
  } catch (error) {
    if (!isMissing(error)) throw error;
  }
}

interface VolumeRoot {
  path: string;
  uid: number;
  gid: number;
  mode: number;
  atime: Date;
  mtime: Date;
  empty: boolean;
}

/** At a volume's first use Podman fills it from the image and gives it the mount point's owner; that is taken back. */
async function volumeRoots(inspect: Inspect): Promise<VolumeRoot[]> {
  const roots: VolumeRoot[] = [];
  for (const mount of inspect.Mounts) {
    if (mount.Type !== 'volume') continue;
    const { uid, gid, mode, atime, mtime } = await stat(mount.Source);
    const empty = (await entriesOf(mount.Source)).length === 0;
    roots.push({ path: mount.Source, uid, gid, mode, atime, mtime, empty });
  }
  return roots;
}

async function putBack(roots: readonly VolumeRoot[]): Promise<void> {
  for (const root of roots) {
    if (root.empty) {
      for (const name of await entriesOf(root.path)) await rm(join(root.path, name), { recursive: true });
    }
    await chown(root.path, root.uid, root.gid);
    await chmod(root.path, root.mode & 0o7777);
    await utimes(root.path, root.atime, root.mtime);
  }
}

/** `podman init` through the wrapper: Podman sets up everything around the processes, CRIU makes them, frozen. */
export async function restoreContainer(inspect: Inspect, request: RestoreRequest, area: RestoreArea): Promise<void> {
  await placeLog(inspect, request.imagesDir);
  const roots = await volumeRoots(inspect);
  await area.prepare({
    id: inspect.Id,
    runc: await requireProgram('runc'),
    imagesDir: request.imagesDir,
    workDir: request.workDir,
    ownNetwork: inspect.HostConfig.NetworkMode === 'none',
  });
  try {
    await change(['init', inspect.Id], {
      env: { CONTAINERS_CONF_OVERRIDE: area.override(inspect.Id) },
      timeout_ms: request.timeout_ms,
    });
  } catch (error) {
    if (error instanceof UmsError && error.code === 'UMS_E_TIMEOUT') throw error;
    throw criuFailure('UMS_E_RESTORE', await logOf(request.workDir, 'restore.log'), toUmsError(error));
  }
  await requireFrozen(inspect.Id, request.workDir);
  await putBack(roots);
}

async function requireFrozen(id: string, workDir: string): Promise<void> {
  await requireAllFrozen((await initPid(RUNC_ROOT, id)) ?? 0, workDir);
}
