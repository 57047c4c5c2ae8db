import { join } from 'node:path';
import { UmsError } from '#src/telemetry/errors.ts';
import type { RestoreRequest } from '../contract.ts';
import { poll } from './cgroup.ts';
import { commandLines } from './command-lines.ts';
import { exists } from './files.ts';
import { QuickMoves } from './quick-moves.ts';
import type { RestoreArea } from './restore-area.ts';

const READY_LIMIT_MS = 60_000;
const END_LIMIT_MS = 120_000;

/** The descriptors of the first process, which runc wants to see before it starts CRIU. */
export const DESCRIPTORS = 'descriptors.json';

/**
 * Restores that have been started and wait for their images, at the gate that stands in for CRIU. The engine and the
 * runtime have done everything by then that does not need them. Nothing of the service exists yet.
 */
export class PreparedRestores {
  readonly #area: RestoreArea;
  readonly #quick = new QuickMoves();
  readonly #started = new Map<string, { request: RestoreRequest; ended: Promise<void> }>();

  constructor(area: RestoreArea) {
    this.#area = area;
  }

  /** True when exactly this restore waits, started by this agent. */
  async has(id: string, request: RestoreRequest): Promise<boolean> {
    const known = this.#started.get(id);
    if (known === undefined || !sameRequest(known.request, request)) return false;
    return await this.#area.waits(id);
  }

  /** `launch` starts the engine or the runtime and resolves when it has ended. Resolves when the gate is reached. */
  async start(id: string, request: RestoreRequest, launch: () => Promise<void>): Promise<void> {
    const ended = launch();
    // Whoever restores or removes it looks at how it ended.
    ended.catch(() => undefined);
    this.#started.set(id, { request, ended });
    let over = false;
    ended.finally(() => (over = true)).catch(() => undefined);
    if (await poll(async () => over || (await this.#area.waits(id)), READY_LIMIT_MS)) {
      if (!over) {
        this.#quick.start();
        return;
      }
      this.#started.delete(id);
      await ended;
    }
    throw new UmsError('UMS_E_TIMEOUT', {
      message: `The restore of ${id} could not be prepared within ${READY_LIMIT_MS} ms`,
      fault: 'destination',
    });
  }

  /** Lets the restore begin; resolves when the engine or the runtime has ended. False when it did not wait any more. */
  async finish(id: string): Promise<boolean> {
    const known = this.#started.get(id);
    if (known === undefined || !(await this.#area.release(id, 'go'))) return false;
    this.#started.delete(id);
    await known.ended.finally(() => this.#stopQuick());
    return true;
  }

  /** Ends a restore that waits, and waits for one that is under way; also what an agent before this one has begun. */
  async giveUp(id: string): Promise<void> {
    const known = this.#started.get(id);
    this.#started.delete(id);
    this.#stopQuick();
    await this.#area.release(id, 'no');
    await known?.ended.catch(() => undefined);
    if (await poll(async () => !(await this.#isAtWork(id)), END_LIMIT_MS, 10)) return;
    throw new UmsError('UMS_E_TIMEOUT', {
      message: `A restore of ${id} that was started earlier has not ended`,
      fault: 'ums',
      mend: 'Wait until the runc process ends and try again; do not kill it with SIGKILL.',
    });
  }

  #stopQuick(): void {
    if (this.#started.size === 0) this.#quick.stop();
  }

  async #isAtWork(id: string): Promise<boolean> {
    if (!(await this.#area.exists(id))) return false;
    // The wrapper and the gate are scripts: their interpreter's first argument is their path.
    const scripts = [this.#area.wrapper(id), this.#area.gate(id)];
    for await (const words of commandLines()) {
      if (scripts.includes(words[1] ?? '') || (words.includes('restore') && words.includes(id))) return true;
    }
    return false;
  }
}

/** runc's record of descriptors came ahead of the images. */
export async function hasDescriptors(request: RestoreRequest): Promise<boolean> {
  return await exists(join(request.imagesDir, DESCRIPTORS));
}

function sameRequest(left: RestoreRequest, right: RestoreRequest): boolean {
  return left.imagesDir === right.imagesDir && left.workDir === right.workDir && left.lazy === right.lazy;
}
