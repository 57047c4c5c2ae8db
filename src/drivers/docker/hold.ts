import { mkdir, rename, rmdir } from 'node:fs/promises';
import { dirname } from 'node:path';
import { isMissing } from '../oci/cgroup.ts';
import { exists, syncDirectory } from '../oci/files.ts';

const HELD = '.held-by-ums';

/**
 * Keeps Docker from starting the container, whoever asks for it: a person, a restart policy, or dockerd after a boot. Docker
 * has no such lock, and a service that is away must not begin anew from its files. Whenever it starts a container it writes
 * the file that becomes its /etc/hostname (`hostname`, or empty for one that never ran); a directory in that place makes the
 * start fail. What runs has the file mounted and does not notice.
 */
export async function hold(hostname: string): Promise<void> {
  if (hostname === '') return;
  if (!(await exists(hostname + HELD))) await rename(hostname, hostname + HELD);
  if (!(await exists(hostname))) await mkdir(hostname);
}

/** On return it is held beyond a power cut too. It waits for the disk, so it is not for the time of the freeze itself. */
export async function holdForGood(hostname: string): Promise<void> {
  if (hostname !== '') await syncDirectory(dirname(hostname));
}

export async function release(hostname: string): Promise<void> {
  if (hostname === '' || !(await exists(hostname + HELD))) return;
  try {
    if (await exists(hostname)) await rmdir(hostname);
    await rename(hostname + HELD, hostname);
  } catch (error) {
    // Docker has removed the container meanwhile.
    if (!isMissing(error)) throw error;
  }
}
