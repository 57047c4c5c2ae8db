import { constants } from 'node:fs';
import { type FileHandle, mkdir, open, readdir, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { UmsError } from '#src/telemetry/errors.ts';
import { isMissing } from './cgroup.ts';
import { exists } from './files.ts';
import { binOf, writeStandIns } from './stand-ins.ts';

/**
 * The settings of one restore, in a directory of its own: RUN/restore/<container id>/. The wrapper and the hook are
 * links there, so that each finds its settings beside the path it was called by.
 *
 * The engine's override file stays in RUN/restore/<container id>.conf while the container lives: Podman hands its path
 * on to conmon, and conmon's clean-up command fails if it is gone. Once the migration is settled it says nothing.
 */
export interface RestoreSettings {
  id: string;
  /** Path of the runtime that the wrapper stands in for; none where the driver starts CRIU by itself. */
  runc?: string;
  imagesDir: string;
  workDir: string;
  /** The container has a network namespace that CRIU makes anew, whose loopback must be brought up. */
  ownNetwork: boolean;
  /** As in RuntimeContainer. */
  hookedNetwork?: boolean;
  /** The engine creates and starts in one step: the processes stay frozen until the agent lets them go. */
  staysFrozen?: boolean;
  /** Control group (of version 2) that CRIU goes to before the service's is frozen, where no wrapper writes it down. */
  home?: string;
  /** Connections in the images are restored, as they are; without it they are closed. */
  localConnections?: boolean;
  /** Memory comes from a lazy-pages daemon that listens in workDir. */
  lazy: boolean;
  /** Path of the real CRIU. */
  criu: string;
  /** Seconds for which CRIU waits for `release` before the restore is given up (criu-gate.pl); none when it may begin. */
  wait_s?: number;
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

  gate(id: string): string {
    return join(binOf(this.directory(id)), 'criu');
  }

  /** For CRIU_CONFIG_FILE: what CRIU must be told so that the restored processes stand still. */
  criuSettings(id: string): string {
    return join(this.directory(id), 'criu.conf');
  }

  /** True from the preparation of a restore until it is settled or removed. */
  async exists(id: string): Promise<boolean> {
    return await exists(this.directory(id));
  }

  async prepare(settings: RestoreSettings): Promise<void> {
    await this.remove(settings.id);
    const directory = this.directory(settings.id);
    await mkdir(directory, { recursive: true, mode: 0o700 });
    const put = (name: string, text: string): Promise<void> => writeFile(join(directory, name), text, { mode: 0o600 });
    await put('id', settings.id);
    if (settings.runc !== undefined) await put('runc', settings.runc);
    if (settings.home !== undefined) await put('home-v2', `${settings.home}\n`);
    await put('images', settings.imagesDir);
    await put('work', settings.workDir);
    // tcp-close: connections to the old place cannot live on at the new one; the service sees them closed.
    const connections = settings.localConnections === true ? 'tcp-established\nnetwork-lock skip' : 'tcp-close';
    await put('criu.conf', `action-script ${join(directory, 'hook')}\n${connections}\nverbosity=3\n`);
    if (settings.localConnections === true) await put('local-connections', '');
    if (settings.ownNetwork) await put('own-network', '');
    if (settings.lazy) await put('lazy', '');
    if (settings.hookedNetwork === true) await put('hooked-network', '');
    if (settings.staysFrozen === true) await put('stays-frozen', '');
    if (settings.wait_s !== undefined) await put('wait', String(settings.wait_s));
    await writeStandIns(directory, settings.criu);
    await symlink(HOOK, join(directory, 'hook'));
    await symlink(WRAPPER, this.wrapper(settings.id));
    const override = `[engine.runtimes]\nrunc=[${JSON.stringify(this.wrapper(settings.id))}]\n`;
    await writeFile(this.override(settings.id), override, { mode: 0o600 });
  }

  /** True while the gate waits for its word, also one that an agent before this one has set up. */
  async waits(id: string): Promise<boolean> {
    const gate = await this.#openSignal(id);
    await gate?.close();
    return gate !== undefined;
  }

  /** Lets CRIU begin, or the runtime give up; false when nobody waits for it any more. */
  async release(id: string, word: 'go' | 'no'): Promise<boolean> {
    const gate = await this.#openSignal(id);
    if (gate === undefined) return false;
    try {
      await gate.write(word.slice(0, 1));
    } finally {
      await gate.close();
    }
    // Whoever looks next shall not find a gate that has been passed.
    await rm(this.#signal(id), { force: true });
    return true;
  }

  /** The gate's pipe can be opened for writing only while somebody reads from it. */
  async #openSignal(id: string): Promise<FileHandle | undefined> {
    try {
      return await open(this.#signal(id), constants.O_WRONLY | constants.O_NONBLOCK);
    } catch (error) {
      if (isMissing(error) || (error instanceof Error && 'code' in error && error.code === 'ENXIO')) return undefined;
      throw error;
    }
  }

  /** A mount that the gate mounts again, as it is, before it lets CRIU begin. */
  async refresh(id: string, mount: { path: string; flags: number }): Promise<void> {
    await writeFile(join(this.directory(id), 'refresh'), `${mount.flags} ${mount.path}\n`, { mode: 0o600 });
  }

  #signal(id: string): string {
    return join(this.directory(id), 'go');
  }

  /** Whoever starts the container from now on starts it from its files, also by what an engine was told of a runtime. */
  async disarm(id: string): Promise<void> {
    if (await this.exists(id)) await writeFile(this.override(id), SETTLED, { mode: 0o600 });
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
