import { spawn } from 'node:child_process';
import { closeSync, mkdirSync, openSync } from 'node:fs';
import { dirname } from 'node:path';
import { once } from 'node:events';
import { UmsError } from '#src/telemetry/errors.ts';

/**
 * Holds an exclusive lock on a file while `work` runs, against every other process. flock(1) takes the lock on a
 * descriptor that this process keeps: the kernel gives it back when the process ends, however it ends.
 */
export async function withLock<T>(path: string, limit_s: number, work: () => Promise<T>): Promise<T> {
  mkdirSync(dirname(path), { recursive: true });
  const fd = openSync(path, 'a');
  try {
    const child = spawn('flock', ['-x', '-w', String(limit_s), '3'], { stdio: ['ignore', 'ignore', 'ignore', fd] });
    const [code] = await once(child, 'exit');
    if (code !== 0) {
      throw new UmsError('UMS_E_LAB', {
        message: `Another command holds ${path} and did not finish within ${limit_s} s`,
        fault: 'user',
        mend: 'Wait for the other `ums lab` or `ums test` to end, then run this one again.',
      });
    }
    return await work();
  } finally {
    closeSync(fd);
  }
}
