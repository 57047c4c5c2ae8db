import { existsSync, readFileSync, rmSync } from 'node:fs';
import { run } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';

/**
 * Removing whole directories, safely. A recursive removal walks into whatever is mounted beneath, a bind mount of the
 * same file system included, and would empty it. So everything mounted there is unmounted first, and nothing is removed
 * while a mount is left.
 */
export async function removeTree(path: string): Promise<void> {
  if (!existsSync(path)) return;
  for (const mount of mountsBeneath(path, readFileSync('/proc/self/mountinfo', 'utf8'))) {
    await run('umount', ['--lazy', '--no-canonicalize', mount], { okExitCodes: [0, 1, 32] });
  }
  const left = mountsBeneath(path, readFileSync('/proc/self/mountinfo', 'utf8'));
  if (left.length > 0) {
    throw new UmsError('UMS_E_LAB', {
      message: `${left.join(', ')} cannot be unmounted`,
      fault: 'ums',
      state: `${path} was left as it is, because removing it would empty what is mounted there.`,
      mend: 'Unmount it by hand, then run the command again.',
    });
  }
  rmSync(path, { recursive: true, force: true });
}

/** Mount points at or beneath a path, the innermost first. */
export function mountsBeneath(path: string, mountinfo: string): string[] {
  return mountinfo
    .split('\n')
    .map((line) => decodeOctal(line.split(' ')[4] ?? ''))
    .filter((mount) => mount === path || mount.startsWith(`${path}/`))
    .toReversed();
}

/** The kernel writes blanks, tabs, newlines and backslashes of a path as octal numbers. */
function decodeOctal(text: string): string {
  return text.replaceAll(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
}
