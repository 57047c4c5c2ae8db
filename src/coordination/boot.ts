import { readFile } from 'node:fs/promises';

/**
 * Changes whenever this host has been down since: the kernel's boot id, and the start time of process 1 for hosts that
 * are made of namespaces (proc(5), field 22 of /proc/PID/stat, counted after the command's closing parenthesis).
 */
export async function bootMark(): Promise<string> {
  const [bootId, stat] = await Promise.all([
    readFile('/proc/sys/kernel/random/boot_id', 'utf8'),
    readFile('/proc/1/stat', 'utf8'),
  ]);
  const startTime = stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? '';
  return `${bootId.trim()}:${startTime}`;
}
