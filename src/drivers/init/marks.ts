import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { type Frozen, frozenSchema } from './schema.ts';

const createdSchema = z.object({ v: z.literal(1), key: z.string().max(128) });

/** What must be known again when the agent was killed in between. */
export class Marks {
  readonly #frozen: string;
  readonly #created: string;

  constructor(runDir: string, stateDir: string) {
    // Processes end with the container, and so does what was said of them.
    this.#frozen = join(runDir, 'frozen.json');
    this.#created = join(stateDir, 'created.json');
  }

  frozen(): Frozen | undefined {
    const text = read(this.#frozen);
    return text === undefined ? undefined : frozenSchema.parse(JSON.parse(text));
  }

  setFrozen(frozen: Frozen | undefined): void {
    if (frozen === undefined) rmSync(this.#frozen, { force: true });
    else writeFileSync(this.#frozen, JSON.stringify(frozen), { mode: 0o600 });
  }

  /** The migration for which this container waits. */
  created(): string | undefined {
    const text = read(this.#created);
    return text === undefined ? undefined : createdSchema.parse(JSON.parse(text)).key;
  }

  async setCreated(key: string): Promise<void> {
    await writeFile(`${this.#created}.new`, JSON.stringify({ v: 1, key }), { mode: 0o600, flush: true });
    await rename(`${this.#created}.new`, this.#created);
  }

  dropCreated(): void {
    rmSync(this.#created, { force: true });
  }
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined;
    throw error;
  }
}
