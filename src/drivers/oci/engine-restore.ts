import { chmod, chown, readFile, rm, stat, utimes } from 'node:fs/promises';
import { join } from 'node:path';
import { criuFailure } from '#src/checkpoint/errors.ts';
import { UmsError, toUmsError } from '#src/telemetry/errors.ts';
import type { RestoreRequest } from '../contract.ts';
import type { RuntimeContainer } from './container.ts';
import { logOf } from './dump.ts';
import { entriesOf } from './files.ts';
import { requireAllFrozen } from './frozen.ts';
import { type LogFile, placeLog, reserveLog } from './log-file.ts';
import { hasDescriptors, PreparedRestores } from './prepared.ts';
import type { RestoreArea, RestoreSettings } from './restore-area.ts';
import { initPid, requireProgram } from './runtime.ts';

/**
 * Seconds for which a prepared restore waits for its images. The engine holds the container's lock meanwhile, and some of
 * its commands wait for it; a restore whose images take longer does without.
 */
const PREPARED_LIMIT_S = 10;

/** How one engine brings one of its containers to life. */
export interface EngineStart {
  container: RuntimeContainer;
  settings: Pick<RestoreSettings, 'ownNetwork' | 'staysFrozen' | 'localConnections'>;
  /** The engine's command; resolves when it has ended. */
  launch: (limit_ms: number) => Promise<void>;
  /** Where the engine mounts the container's root. */
  merged: string;
  log: LogFile | undefined;
  /** Directories that the engine fills or gives another owner at their first use: that is taken back. */
  kept: readonly string[];
}

/**
 * The engine's own start through the wrapper: the engine sets up everything around the processes, CRIU makes them, frozen.
 * The engine's part can be done before the images are there; the gate in CRIU's place then holds the rest up.
 */
export class EngineRestore {
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

  async prepare(start: EngineStart, request: RestoreRequest): Promise<void> {
    const { id } = start.container;
    await this.#prepared.giveUp(id);
    // The syscall with which the gate refreshes the overlay has another number elsewhere.
    if (process.arch !== 'x64' || !(await hasDescriptors(request))) return;
    const kept = await directoriesAsTheyAre(start.kept);
    await this.#settings(start, request, true);
    if (start.log !== undefined) await reserveLog(start.log);
    await this.#prepared.start(id, request, () => launch(start, request));
    await putBack(kept);
    const flags = await overlayFlags(start.merged);
    if (flags === undefined) await this.#prepared.giveUp(id);
    else await this.#area.refresh(id, { path: start.merged, flags });
  }

  async run(start: EngineStart, request: RestoreRequest): Promise<void> {
    const { container, log } = start;
    const place = async (reserved: boolean) =>
      log === undefined ? undefined : await placeLog(log, request.imagesDir, reserved);
    if (await this.#prepared.has(container.id, request)) {
      const [finished] = await Promise.all([this.#prepared.finish(container.id), place(true)]);
      if (finished) return await requireFrozen(container, request.workDir);
    }
    await this.#prepared.giveUp(container.id);
    await place(false);
    const kept = await directoriesAsTheyAre(start.kept);
    await this.#settings(start, request, false);
    await launch(start, request);
    await requireFrozen(container, request.workDir);
    await putBack(kept);
  }

  giveUp(id: string): Promise<void> {
    return this.#prepared.giveUp(id);
  }

  async #settings({ container, settings }: EngineStart, request: RestoreRequest, wait: boolean): Promise<void> {
    await this.#area.prepare({
      id: container.id,
      runc: await requireProgram('runc'),
      criu: await requireProgram('criu'),
      imagesDir: request.imagesDir,
      workDir: request.workDir,
      hookedNetwork: container.hookedNetwork === true,
      lazy: request.lazy === true,
      ...settings,
      ...(wait ? { wait_s: PREPARED_LIMIT_S } : {}),
    });
  }
}

async function launch(start: EngineStart, request: RestoreRequest): Promise<void> {
  try {
    await start.launch(request.timeout_ms);
  } catch (error) {
    if (error instanceof UmsError && error.code === 'UMS_E_TIMEOUT') throw error;
    throw criuFailure('UMS_E_RESTORE', await logOf(request.workDir, 'restore.log'), toUmsError(error));
  }
}

async function requireFrozen({ root, id }: RuntimeContainer, workDir: string): Promise<void> {
  await requireAllFrozen((await initPid(root, id)) ?? 0, workDir);
}

interface KeptDirectory {
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

async function directoriesAsTheyAre(paths: readonly string[]): Promise<KeptDirectory[]> {
  const kept: KeptDirectory[] = [];
  for (const path of paths) {
    const { uid, gid, mode, atime, mtime, dev, ino } = await stat(path);
    const empty = (await entriesOf(path)).length === 0;
    kept.push({ path, uid, gid, mode, atime, mtime, directory: `${dev}:${ino}`, empty });
  }
  return kept;
}

async function putBack(roots: readonly KeptDirectory[]): Promise<void> {
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
 * The flags with which the engine has mounted the container's root. Files still arrive beneath it when the engine has been
 * prepared, and an overlay may remember what it saw before: mounting it again with the same flags makes the
 * kernel forget all names that nobody uses. Undefined when the mount cannot be seen from here.
 */
async function overlayFlags(path: string): Promise<number | undefined> {
  for (const line of (await readFile('/proc/self/mountinfo', 'utf8')).split('\n')) {
    const fields = line.split(' ');
    if (fields[4] !== path) continue;
    const flags = (fields[5] ?? '').split(',').map((name) => MOUNT_FLAGS[name]);
    if (flags.some((flag) => flag === undefined)) return undefined;
    return flags.reduce<number>((sum, flag) => sum | (flag ?? 0), 0);
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
