import { closeSync, constants, openSync, readSync } from 'node:fs';
import { UmsError } from '#src/telemetry/errors.ts';

/** What the kernel answers when a process, its memory or a part of it is not there (any more). */
const GONE = new Set(['ESRCH', 'ENOENT', 'EIO', 'EFAULT', 'ENXIO']);

export function isGone(thrown: unknown): boolean {
  return thrown instanceof Error && 'code' in thrown && typeof thrown.code === 'string' && GONE.has(thrown.code);
}

/** Undefined if what is asked for has vanished; anything else is thrown. */
export function ifThere<T>(ask: () => T): T | undefined {
  try {
    return ask();
  } catch (error) {
    if (isGone(error)) return undefined;
    throw error;
  }
}

/**
 * Reads a file of /proc/PID as a whole. With one buffer and few calls: the kernel writes these files as they are read,
 * and what changes between two calls can be missing from both.
 */
export function readProcFile(pid: number, name: string, bytesMax: number): string {
  const fd = openSync(`/proc/${pid}/${name}`, constants.O_RDONLY);
  try {
    const chunks: Buffer[] = [];
    let total = 0;
    for (;;) {
      const chunk = Buffer.allocUnsafe(256 * 1024);
      const bytes = readSync(fd, chunk);
      if (bytes === 0) return Buffer.concat(chunks, total).toString('latin1');
      chunks.push(chunk.subarray(0, bytes));
      total += bytes;
      if (total > bytesMax) throw tooMuch(pid, name);
    }
  } finally {
    closeSync(fd);
  }
}

function tooMuch(pid: number, name: string): UmsError {
  return new UmsError('UMS_E_DUMP', {
    message: `Process ${pid} has too many memory mappings: /proc/${pid}/${name} exceeds its limit.`,
    fault: 'service',
  });
}
