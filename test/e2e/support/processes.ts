import { readFileSync } from 'node:fs';
import { signalIfThere } from '#lab/cgroup.ts';

/** Processes of test hosts, by the machine's numbers. */

/** A process's command line, words separated by blanks; empty when it has ended. */
export function commandLine(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ').trim();
  } catch {
    return '';
  }
}

export function killProcess(pid: number): void {
  signalIfThere(pid, 'SIGKILL');
}
