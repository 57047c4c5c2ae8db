import { chmod, chown, copyFile, open, readFile, rm, stat, utimes } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { criuFailure } from '#src/checkpoint/errors.ts';
import { UmsError, toUmsError } from '#src/telemetry/errors.ts';
import type { RestoreRequest } from '../contract.ts';
import { isMissing } from '../oci/cgroup.ts';
import { requireAllFrozen } from '../oci/frozen.ts';
import { logOf } from '../oci/dump.ts';
import { entriesOf } from '../oci/files.ts';
import { hasDescriptors, PreparedRestores } from '../oci/prepared.ts';
import type { RestoreArea } from '../oci/restore-area.ts';
import { initPid, requireProgram, RUNC_ROOT } from '../oci/runtime.ts';
import { change } from './cli.ts';
import { upperTree } from './create.ts';
import type { Inspect } from './schema.ts';

/**
 * Seconds for which a prepared restore waits for its images. Podman holds the container's lock meanwhile, and `podman ps`
 * waits for the lock of each container; a restore whose images take longer does without.
 */
const PREPARED_LIMIT_S = 10;
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
  /** The directory itself: another one in its place is storage that was mounted on it. */
  directory: string;
  empty: boolean;
}

/**
 * At a volume's first use Podman fills it from the image and gives it the mount point's owner; that is taken back. What
 * both systems share is nobody's to change.
 */
async function volumeRoots(inspect: Inspect, shared: readonly string[]): Promise<VolumeRoot[]> {
  const roots: VolumeRoot[] = [];
  for (const mount of inspect.Mounts) {
    if (mount.Type !== 'volume' || (mount.Name !== undefined && shared.includes(mount.Name))) continue;
    const { uid, gid, mode, atime, mtime, dev, ino } = await stat(mount.Source);
    const empty = (await entriesOf(mount.Source)).length === 0;
    roots.push({ path: mount.Source, uid, gid, mode, atime, mtime, directory: `${dev}:${ino}`, empty });
  }
  return roots;
}

async function putBack(roots: readonly VolumeRoot[]): Promise<void> {
  for (const root of roots) {
    const { dev, ino } = await stat(root.path);
    if (`${dev}:${ino}` !== root.directory) continue;
    if (root.empty) {
      for (const name of await entriesOf(root.path)) await rm(join(root.path, name), { recursive: true });
    }
    await chown(root.path, root.uid, root.gid);
    await chmod(root.path, root.mode & 0o7777);
    await utimes(root.path, root.atime, root.mtime);
  }
}

/**
 * `podman init` through the wrapper: Podman sets up everything around the processes, CRIU makes them, frozen. Podman's
 * part can be done before the images are there; the gate in CRIU's place then holds the rest up.
 */
export class PodmanRestore {
  readonly #area: RestoreArea;
  readonly #prepared: PreparedRestores;

  constructor(area: RestoreArea) {
    this.#area = area;
    this.#prepared = new PreparedRestores(area);
  }

  /** True while a prepared restore waits for its images, also one that an agent before this one has prepared. */
  waits(id: string): Promise<boolean> {
    return this.#area.waits(id);
  }

  isPrepared(id: string, request: RestoreRequest): Promise<boolean> {
    return this.#prepared.has(id, request);
  }

  async prepare(inspect: Inspect, request: RestoreRequest, shared: readonly string[]): Promise<void> {
    await this.#prepared.giveUp(inspect.Id);
    // The syscall with which the gate refreshes the overlay has another number elsewhere.
    if (process.arch !== 'x64' || !(await hasDescriptors(request))) return;
    const roots = await volumeRoots(inspect, shared);
    await this.#settings(inspect, request, true);
    await this.#prepared.start(inspect.Id, request, () => this.#init(inspect.Id, request));
    await putBack(roots);
    const flags = await overlayFlags(inspect);
    if (flags === undefined) await this.#prepared.giveUp(inspect.Id);
    else await this.#area.refresh(inspect.Id, flags);
  }

  async run(inspect: Inspect, request: RestoreRequest, shared: readonly string[]): Promise<void> {
    const { Id: id } = inspect;
    if (await this.#prepared.has(id, request)) {
      const [finished] = await Promise.all([this.#prepared.finish(id), placeLog(inspect, request.imagesDir)]);
      if (finished) return await requireFrozen(id, request.workDir);
    }
    await this.#prepared.giveUp(id);
    await placeLog(inspect, request.imagesDir);
    const roots = await volumeRoots(inspect, shared);
    await this.#settings(inspect, request, false);
    await this.#init(id, request);
    await requireFrozen(id, request.workDir);
    await putBack(roots);
  }

  giveUp(id: string): Promise<void> {
    return this.#prepared.giveUp(id);
  }

  async #settings(inspect: Inspect, request: RestoreRequest, wait: boolean): Promise<void> {
    await this.#area.prepare({
      id: inspect.Id,
      runc: await requireProgram('runc'),
      criu: await requireProgram('criu'),
      imagesDir: request.imagesDir,
      workDir: request.workDir,
      ownNetwork: inspect.HostConfig.NetworkMode === 'none',
      lazy: request.lazy === true,
      ...(wait ? { wait_s: PREPARED_LIMIT_S } : {}),
    });
  }

  async #init(id: string, request: RestoreRequest): Promise<void> {
    try {
      await change(['init', id], {
        env: { CONTAINERS_CONF_OVERRIDE: this.#area.override(id) },
        timeout_ms: request.timeout_ms,
      });
    } catch (error) {
      if (error instanceof UmsError && error.code === 'UMS_E_TIMEOUT') throw error;
      throw criuFailure('UMS_E_RESTORE', await logOf(request.workDir, 'restore.log'), toUmsError(error));
    }
  }
}

/**
 * Where Podman has mounted the container's root, with the flags of that mount. Files still arrive beneath it when Podman
 * has been prepared, and an overlay may remember what it saw before: mounting it again with the same flags makes the
 * kernel forget all names that nobody uses. Undefined when the mount cannot be seen from here.
 */
async function overlayFlags(inspect: Inspect): Promise<{ path: string; flags: number } | undefined> {
  const path = join(dirname(upperTree(inspect).path), 'merged');
  for (const line of (await readFile('/proc/self/mountinfo', 'utf8')).split('\n')) {
    const fields = line.split(' ');
    if (fields[4] !== path) continue;
    const flags = (fields[5] ?? '').split(',').map((name) => MOUNT_FLAGS[name]);
    if (flags.some((flag) => flag === undefined)) return undefined;
    return { path, flags: flags.reduce<number>((sum, flag) => sum | (flag ?? 0), 0) };
  }
  return undefined;
}

/** Names of mount flags in mountinfo, with their bits for mount(2). */
const MOUNT_FLAGS: Record<string, number> = {
  rw: 0,
  ro: 1,
  nosuid: 2,
  nodev: 4,
  noexec: 8,
  noatime: 1024,
  nodiratime: 2048,
  relatime: 1 << 21,
};

async function requireFrozen(id: string, workDir: string): Promise<void> {
  await requireAllFrozen((await initPid(RUNC_ROOT, id)) ?? 0, workDir);
}
