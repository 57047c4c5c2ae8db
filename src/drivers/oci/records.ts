import { mkdir, open, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { z } from 'zod';
import { isMissing } from './cgroup.ts';
import { syncDirectory } from './files.ts';

/**
 * What a `create` is about to make, written down before it makes it, so that after a crash exactly that is found again
 * and nothing else.
 */
export class CreateRecords<T> {
  readonly #directory: string;
  readonly #schema: z.ZodType<T>;

  constructor(stateDir: string, engine: string, schema: z.ZodType<T>) {
    this.#directory = join(stateDir, 'created', engine);
    this.#schema = schema;
  }

  #path(key: string): string {
    // A key comes from the journal, but a path is not the place to trust it.
    if (!/^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$/.test(key)) throw new Error(`not a key: ${key}`);
    return join(this.#directory, `${key}.json`);
  }

  async read(key: string): Promise<T | undefined> {
    try {
      return this.#schema.parse(JSON.parse(await readFile(this.#path(key), 'utf8')));
    } catch (error) {
      if (isMissing(error)) return undefined;
      throw error;
    }
  }

  /** On return the record is on the disk, whole. */
  async write(key: string, record: T): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    const path = this.#path(key);
    const file = await open(`${path}.new`, 'w', 0o600);
    try {
      await file.writeFile(JSON.stringify(record));
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(`${path}.new`, path);
    await syncDirectory(this.#directory);
  }

  async remove(key: string): Promise<void> {
    await rm(this.#path(key), { force: true });
  }
}
