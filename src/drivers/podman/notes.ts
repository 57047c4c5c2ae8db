import { mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { isMissing } from '../oci/cgroup.ts';
import { requireProgram } from '../oci/runtime.ts';
import { change } from './cli.ts';

const TOLD = fileURLToPath(new URL('runtime-told.sh', import.meta.url));

/** What Podman is being told, or soon will be. */
interface Telling {
  told: Promise<void>;
  hurry: () => void;
}

/**
 * Lets Podman write down what has already happened. A service is frozen and thawed by one write to its control group,
 * because Podman takes sixty milliseconds for that; Podman must learn of it all the same, or it would let a user stop a
 * service that is away. So `podman pause`, `unpause` and `start` are run afterwards, with a runtime that changes nothing and
 * fails unless what Podman is about to write down is so.
 */
export class PodmanNotes {
  readonly #directory: string;
  #ready: Promise<string> | undefined;
  readonly #telling = new Map<string, Telling>();

  constructor(runDir: string) {
    this.#directory = join(runDir, 'podman-notes');
  }

  /** `word` is what has happened to the container. */
  async write(id: string, word: 'pause' | 'unpause' | 'start'): Promise<void> {
    this.#ready ??= this.#prepare();
    await change([word, id], { env: { CONTAINERS_CONF_OVERRIDE: await this.#ready } });
  }

  /**
   * Has Podman told in the background, when so many milliseconds have passed or somebody waits for it. Who needs it to know
   * waits for that, or tells it again.
   */
  later(id: string, tell: () => Promise<void>, after_ms = 0): void {
    const previous = this.#telling.get(id);
    previous?.hurry();
    const due = Promise.withResolvers<void>();
    const timer = setTimeout(due.resolve, after_ms);
    const hurry = () => {
      clearTimeout(timer);
      due.resolve();
    };
    const before = previous?.told.catch(() => undefined);
    const told = Promise.all([before, due.promise]).then(tell);
    const telling = { told, hurry };
    this.#telling.set(id, telling);
    const forget = () => {
      if (this.#telling.get(id) === telling) this.#telling.delete(id);
    };
    told.then(forget, forget);
  }

  /** Resolves when nothing is being told about the container any more, whether or not it was heard. */
  async written(id: string): Promise<void> {
    const telling = this.#telling.get(id);
    telling?.hurry();
    await telling?.told.catch(() => undefined);
  }

  async #prepare(): Promise<string> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    await writeFile(join(this.#directory, 'runc'), await requireProgram('runc'), { mode: 0o600 });
    const runtime = join(this.#directory, 'runtime');
    await symlink(TOLD, runtime).catch((error: unknown) => {
      if (!isThere(error)) throw error;
    });
    const override = join(this.#directory, 'override.conf');
    await writeFile(override, `[engine.runtimes]\nrunc=[${JSON.stringify(runtime)}]\n`, { mode: 0o600 });
    return override;
  }
}

function isThere(error: unknown): boolean {
  return !isMissing(error) && error instanceof Error && 'code' in error && error.code === 'EEXIST';
}
