import { readdir, readFile } from 'node:fs/promises';
import { isMissing } from './cgroup.ts';

/** The words of each process of this host, as it was started. Processes that end meanwhile have none. */
export async function* commandLines(): AsyncGenerator<string[]> {
  for (const entry of await readdir('/proc')) {
    if (/^\d+$/.test(entry)) yield (await commandLine(entry)).split('\0');
  }
}

async function commandLine(pid: string): Promise<string> {
  try {
    return await readFile(`/proc/${pid}/cmdline`, 'utf8');
  } catch (error) {
    if (isMissing(error)) return '';
    throw error;
  }
}
