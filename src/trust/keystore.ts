import { chmod, mkdir, open, readFile, readdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { randomUUID } from 'node:crypto';

/** Private keys and own certificates as files that only their owner can read. Every write is whole or not there. */
export class KeyStore {
  readonly #directory: string;

  private constructor(directory: string) {
    this.#directory = directory;
  }

  static async open(directory: string): Promise<KeyStore> {
    await mkdir(directory, { recursive: true, mode: 0o700 });
    // The directory may be older than this program, or made under another umask.
    await chmod(directory, 0o700);
    for (const file of await readdir(directory)) {
      // Left by a crash in the middle of a write.
      if (file.endsWith('.tmp')) await rm(join(directory, file), { force: true });
    }
    return new KeyStore(directory);
  }

  async read(name: string): Promise<string | undefined> {
    try {
      return await readFile(join(this.#directory, name), 'utf8');
    } catch (error) {
      if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined;
      throw error;
    }
  }

  async write(name: string, content: string): Promise<void> {
    const temporary = join(this.#directory, `${name}.${randomUUID()}.tmp`);
    const file = await open(temporary, 'wx', 0o600);
    try {
      await file.writeFile(content);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, join(this.#directory, name));
    const directory = await open(this.#directory, 'r');
    try {
      await directory.sync();
    } finally {
      await directory.close();
    }
  }

  async remove(name: string): Promise<void> {
    await rm(join(this.#directory, name), { force: true });
  }

  async names(): Promise<string[]> {
    return await readdir(this.#directory);
  }
}
