import { readFileSync } from 'node:fs';
import { signalIfThere } from '#lab/cgroup.ts';
import type { Host } from '#lab/host.ts';

/** A process's command line, words separated by blanks; empty when it has ended. */
function commandLine(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ').trim();
  } catch {
    return '';
  }
}

/** Kills a host's processes with such a command line. There need not be any: then nothing could break by their death. */
export function killOn(host: Host, like: RegExp): void {
  const found = host.processes().filter((pid) => like.test(commandLine(pid)));
  for (const pid of found) signalIfThere(pid, 'SIGKILL');
}
