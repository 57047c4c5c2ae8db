import { readdir, readFile, readlink } from 'node:fs/promises';

/** Processes and descriptors come and go while /proc is read; only these mean that. */
function emptyIfGone<T>(fallback: T): (error: NodeJS.ErrnoException) => T {
  return (error) => {
    if (error.code === 'ENOENT' || error.code === 'ESRCH' || error.code === 'EINVAL') return fallback;
    throw error;
  };
}

async function socketInodes(pid: number): Promise<Set<string>> {
  const inodes = new Set<string>();
  for (const fd of await readdir(`/proc/${pid}/fd`).catch(emptyIfGone<string[]>([]))) {
    const target = await readlink(`/proc/${pid}/fd/${fd}`).catch(emptyIfGone(''));
    const inode = /^socket:\[(\d+)\]$/.exec(target)?.[1];
    if (inode !== undefined) inodes.add(inode);
  }
  return inodes;
}

/**
 * TCP ports on which these processes listen (proc(5): /proc/PID/net/tcp, state 0A, the tenth field is the inode). Only
 * their own sockets count, so that a service in the host's network does not answer for its neighbours.
 */
export async function listeningPorts(pids: readonly number[]): Promise<number[]> {
  const ports = new Set<number>();
  for (const pid of pids) {
    const inodes = await socketInodes(pid);
    if (inodes.size === 0) continue;
    for (const table of ['tcp', 'tcp6']) {
      const text = await readFile(`/proc/${pid}/net/${table}`, 'utf8').catch(emptyIfGone(''));
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
