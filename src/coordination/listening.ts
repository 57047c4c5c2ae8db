import { readdirSync, readFileSync, readlinkSync } from 'node:fs';

/** Processes and descriptors come and go while /proc is read; only these errors mean that. */
const GONE = new Set(['ENOENT', 'ESRCH', 'EINVAL']);

function unlessGone<T>(read: () => T, fallback: T): T {
  try {
    return read();
  } catch (error) {
    if (error instanceof Error && 'code' in error && typeof error.code === 'string' && GONE.has(error.code))
      return fallback;
    throw error;
  }
}

function socketInodes(pid: number): Set<string> {
  const inodes = new Set<string>();
  for (const fd of unlessGone(() => readdirSync(`/proc/${pid}/fd`), [])) {
    const target = unlessGone(() => readlinkSync(`/proc/${pid}/fd/${fd}`), '');
    const inode = /^socket:\[(\d+)\]$/.exec(target)?.[1];
    if (inode !== undefined) inodes.add(inode);
  }
  return inodes;
}

/**
 * TCP ports on which these processes listen (proc(5): /proc/PID/net/tcp, state 0A, the tenth field is the inode). Only
 * their own sockets count, so that a service in the host's network does not answer for its neighbours. Synchronous, because
 * the service may stand still, and the kernel answers at once.
 */
export function listeningPorts(pids: readonly number[]): number[] {
  const ports = new Set<number>();
  for (const pid of pids) {
    const inodes = socketInodes(pid);
    if (inodes.size === 0) continue;
    for (const table of ['tcp', 'tcp6']) {
      const text = unlessGone(() => readFileSync(`/proc/${pid}/net/${table}`, 'utf8'), '');
      for (const line of text.split('\n').slice(1)) {
        const fields = line.trim().split(/\s+/);
        if (fields[3] !== '0A' || !inodes.has(fields[9] ?? '')) continue;
        const port = Number.parseInt(fields[1]?.split(':')[1] ?? '', 16);
        if (Number.isInteger(port) && port > 0) ports.add(port);
      }
    }
  }
  return [...ports].sort((a, b) => a - b);
}
