import { mkdir, open, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { isMissing } from '../oci/cgroup.ts';

/**
 * What a `create` is about to make, written down before it makes it, so that after a crash exactly that is found again
 * and nothing else: a container of the same name that a person made is told apart by the command that made it.
 */
const recordSchema = z.object({
  v: z.literal(1),
  name: z.string(),
  args: z.array(z.string()),
  madeVolumes: z.array(z.string()),
  /** Bound directories that the content is copied into, and those of them that were not there before. */
  copiedDirectories: z.array(z.string()),
  madeDirectories: z.array(z.string()),
});
export type CreateRecord = z.infer<typeof recordSchema>;

export class CreateRecords {
  readonly #directory: string;

  constructor(stateDir: string, engine: string) {
    this.#directory = join(stateDir, 'created', engine);
  }

  #path(key: string): string {
    // A key comes from the journal, but a path is not the place to trust it.
    if (!/^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$/.test(key)) throw new Error(`not a key: ${key}`);
    return join(this.#directory, `${key}.json`);
  }

  async read(key: string): Promise<CreateRecord | undefined> {
    try {
      return recordSchema.parse(JSON.parse(await readFile(this.#path(key), 'utf8')));
    } catch (error) {
      if (isMissing(error)) return undefined;
      throw error;
    }
  }

  /** On return the record is on the disk, whole. */
  async write(key: string, record: CreateRecord): Promise<void> {
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
    const directory = await open(this.#directory, 'r');
    try {
      await directory.sync();
    } finally {
      await directory.close();
    }
  }

  async remove(key: string): Promise<void> {
    await rm(this.#path(key), { force: true });
  }
}
