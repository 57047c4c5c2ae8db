import { readFile } from 'node:fs/promises';

/** What the kernel says of a process (proc(5): /proc/PID/status); nothing when it has ended. */
export function statusOf(pid: number): Promise<string> {
  return readFile(`/proc/${pid}/status`, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT' || error.code === 'ESRCH') return '';
    throw error;
  });
}
