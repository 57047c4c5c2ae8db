import { access, mkdir, readdir, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { UmsError } from '#src/telemetry/errors.ts';
import { isMissing } from './cgroup.ts';

/**
 * The settings of one restore, in a directory of its own: RUN/restore/<container id>/. The wrapper and the hook are
 * links there, so that each finds its settings beside the path it was called by.
 *
 * The engine's override file stays in RUN/restore/<container id>.conf while the container lives: Podman hands its path
 * on to conmon, and conmon's clean-up command fails if it is gone. Once the migration is settled it says nothing.
 */
export interface RestoreSettings {
  id: string;
  runc: string;
  imagesDir: string;
  workDir: string;
  /** The container has a network namespace that CRIU makes anew, whose loopback must be brought up. */
  ownNetwork: boolean;
}

const WRAPPER = fileURLToPath(new URL('runtime-wrapper.sh', import.meta.url));
const HOOK = fileURLToPath(new URL('criu-hook.sh', import.meta.url));
const SETTLED = '# Left by a finished migration: it changes nothing and goes away with the container.\n';

export class RestoreArea {
  readonly #root: string;

  constructor(runDir: string) {
    this.#root = join(runDir, 'restore');
    // CRIU's settings file has no way to quote a space.
    if (/\s/.test(this.#root)) {
      throw new UmsError('UMS_E_USAGE', {
        message: `The run directory must not contain spaces: ${runDir}`,
        fault: 'user',
        mend: 'Set UMS_RUN_DIR to a path without spaces.',
      });
    }
  }

  directory(id: string): string {
    return join(this.#root, id);
  }

  override(id: string): string {
    return join(this.#root, `${id}.conf`);
  }

  wrapper(id: string): string {
    return join(this.directory(id), 'runtime');
  }

  /** True from the preparation of a restore until it is settled or removed. */
  async exists(id: string): Promise<boolean> {
    try {
      await access(this.directory(id));
      return true;
    } catch (error) {
      if (isMissing(error)) return false;
      throw error;
    }
  }

  async prepare(settings: RestoreSettings): Promise<void> {
    await this.remove(settings.id);
    const directory = this.directory(settings.id);
    await mkdir(directory, { recursive: true, mode: 0o700 });
    const put = (name: string, text: string): Promise<void> => writeFile(join(directory, name), text, { mode: 0o600 });
    await put('id', settings.id);
    await put('runc', settings.runc);
    await put('images', settings.imagesDir);
    await put('work', settings.workDir);
    // tcp-close: connections to the old place cannot live on at the new one; the service sees them closed.
    await put('criu.conf', `action-script ${join(directory, 'hook')}\ntcp-close\nverbosity=3\n`);
    if (settings.ownNetwork) await put('own-network', '');
    await symlink(HOOK, join(directory, 'hook'));
    await symlink(WRAPPER, this.wrapper(settings.id));
    const override = `[engine.runtimes]\nrunc=[${JSON.stringify(this.wrapper(settings.id))}]\n`;
    await writeFile(this.override(settings.id), override, { mode: 0o600 });
  }

  /** Drops the settings; the override stays, empty, until the container goes. */
  async settle(id: string): Promise<void> {
    if (!(await this.exists(id))) return;
    await writeFile(this.override(id), SETTLED, { mode: 0o600 });
    await rm(this.directory(id), { recursive: true, force: true });
  }

  async remove(id: string): Promise<void> {
    await rm(this.directory(id), { recursive: true, force: true });
    await rm(this.override(id), { force: true });
  }

  /** Drops settled overrides of containers that are no longer there. */
  async sweep(ids: ReadonlySet<string>): Promise<void> {
    let names: string[];
    try {
      names = await readdir(this.#root);
    } catch (error) {
      if (isMissing(error)) return;
      throw error;
    }
    for (const name of names) {
      if (!name.endsWith('.conf')) continue;
      const id = name.slice(0, -'.conf'.length);
      if (!ids.has(id) && !(await this.exists(id))) await this.remove(id);
    }
  }
}
