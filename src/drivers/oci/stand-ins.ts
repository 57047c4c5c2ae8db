import { mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { findProgram } from './runtime.ts';

const GATE = fileURLToPath(new URL('criu-gate.pl', import.meta.url));
const QUICK_TAR = fileURLToPath(new URL('quick-tar.sh', import.meta.url));

export function binOf(directory: string): string {
  return join(directory, 'bin');
}

/** Puts what runc and CRIU shall find first in their PATH into DIRECTORY/bin, and the real programs' paths beside it. */
export async function writeStandIns(directory: string, criu: string): Promise<void> {
  await mkdir(binOf(directory));
  await writeFile(join(directory, 'criu'), criu, { mode: 0o600 });
  await symlink(GATE, join(binOf(directory), 'criu'));
  const tar = await findProgram('tar');
  if (tar === undefined) return;
  await writeFile(join(directory, 'tar'), tar, { mode: 0o600 });
  await symlink(QUICK_TAR, join(binOf(directory), 'tar'));
}
