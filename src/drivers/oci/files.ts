import { statSync } from 'node:fs';
import { open, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { isMissing } from './cgroup.ts';

export async function exists(path: string): Promise<boolean> {
  try {
    statSync(path);
    return true;
  } catch (error) {
    if (isMissing(error)) return false;
    throw error;
  }
}

/** Names in a directory; none when it is not there. */
export async function entriesOf(path: string): Promise<string[]> {
  try {
    return await readdir(path);
  } catch (error) {
    if (isMissing(error)) return [];
    throw error;
  }
}

/** On return the names in the directory are on the disk. */
export async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, 'r');
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

/** Undoes the copying of bound directories: each was absent (`made`) or empty before, and is so again. */
export async function undoCopies(copied: readonly string[], made: readonly string[]): Promise<void> {
  for (const path of copied) {
    if (made.includes(path)) {
      await rm(path, { recursive: true, force: true });
      continue;
    }
    for (const name of await entriesOf(path)) await rm(join(path, name), { recursive: true, force: true });
  }
}
