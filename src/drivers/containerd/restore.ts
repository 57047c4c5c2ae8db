import { mkdir, readdir, rename, rm, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { isMissing } from '../oci/cgroup.ts';
import type { EngineStart } from '../oci/engine-restore.ts';
import type { LogFile } from '../oci/log-file.ts';
import type { RestoreArea } from '../oci/restore-area.ts';
import { requireProgram } from '../oci/runtime.ts';
import type { ContainerdClient } from './client.ts';
import type { ContainerdHandle } from './handle.ts';
import { LOG_LIMIT_BYTES, logFileOf } from './losses.ts';
import { startTask } from './start-task.ts';
import { rootfsPath } from './surroundings.ts';

const PLAIN = '.runc';
const RUNTIME = 'runtime';

/**
 * The runtimes of tasks that came by a migration. containerd calls a task's runtime by the path that it was told at its
 * start for as long as the task lives, so the path is a link that can be turned: to the restore's own wrapper at first,
 * afterwards to runc. A task begun later has nothing to do with it.
 */
export class TaskRuntimes {
  readonly #directory: string;

  constructor(runDir: string) {
    this.#directory = join(runDir, 'runtimes');
  }

  path(id: string): string {
    return join(this.#directory, id, RUNTIME);
  }

  async toWrapper(id: string, area: RestoreArea): Promise<void> {
    await this.#turn(id, area.directory(id));
  }

  /** Only of a task that has one. */
  async toRunc(id: string): Promise<void> {
    if (!(await this.#ids()).includes(id)) return;
    const plain = join(this.#directory, PLAIN);
    await mkdir(plain, { recursive: true, mode: 0o755 });
    await replaceLink(await requireProgram('runc'), join(plain, RUNTIME));
    await this.#turn(id, plain);
  }

  async remove(id: string): Promise<void> {
    await rm(join(this.#directory, id), { force: true });
  }

  /** Drops those whose task is gone. */
  async sweep(tasks: ReadonlySet<string>, area: RestoreArea): Promise<void> {
    for (const id of await this.#ids()) {
      if (!tasks.has(id) && !(await area.exists(id))) await this.remove(id);
    }
  }

  async #ids(): Promise<string[]> {
    try {
      const entries = await readdir(this.#directory, { withFileTypes: true });
      return entries.filter((entry) => entry.isSymbolicLink() && !entry.name.startsWith('.')).map(({ name }) => name);
    } catch (error) {
      if (isMissing(error)) return [];
      throw error;
    }
  }

  async #turn(id: string, target: string): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o755 });
    await replaceLink(target, join(this.#directory, id));
  }
}

/** In one step: whoever follows it sees the one or the other. */
async function replaceLink(target: string, path: string): Promise<void> {
  const draft = join(path, '..', `.new-${process.pid}-${path.split('/').at(-1) ?? ''}`);
  await rm(draft, { force: true });
  await symlink(target, draft);
  await rename(draft, path);
}

/** containerd creates and starts in two steps, but the task counts as begun only after both: it stays frozen beyond them. */
export function startOf(
  client: ContainerdClient,
  area: RestoreArea,
  runtimes: TaskRuntimes,
  handle: ContainerdHandle,
): EngineStart {
  const { id, namespace, stdio } = handle;
  return {
    container: handle,
    settings: { ownNetwork: handle.ownNetwork, staysFrozen: true },
    launch: async (limit_ms) => {
      await runtimes.toWrapper(id, area);
      await startTask({ address: client.address, namespace, id, stdio, runtime: runtimes.path(id) }, limit_ms);
    },
    merged: rootfsPath(namespace, id),
    log: logOf(handle),
    kept: [],
  };
}

export function logOf({ stdio }: ContainerdHandle): LogFile | undefined {
  const path = logFileOf(stdio);
  return path === undefined ? undefined : { path, image: 'containerd-log.img', limit_bytes: LOG_LIMIT_BYTES };
}
