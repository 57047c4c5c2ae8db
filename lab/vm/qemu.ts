import { existsSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { run } from '#src/telemetry/exec.ts';
import { debianMirror } from '#src/approaches/images/mirror.ts';
import type { Say } from '../say.ts';
import { removeTree } from '../trees.ts';

/**
 * qemu 10 of Debian 13, in a tree of its own and not installed: Debian 12's qemu 7.2 corrupts the memory of emulated
 * machines within seconds (8 of 9 boots with one processor ended in panics of many kinds; with this one, none of 9 did).
 */
const SUITE = 'trixie';
const BUILD_LIMIT_MS = 600_000;

export interface Qemu {
  command: string;
  /** What comes before the machine's own arguments. */
  args: string[];
  env: Record<string, string>;
}

export async function fetchQemu(cache: string, say: Say): Promise<Qemu> {
  const tree = join(cache, `qemu-${SUITE}`);
  if (!existsSync(tree)) await build(tree, say);
  const libraries = join(tree, 'usr/lib/x86_64-linux-gnu');
  const data = ['usr/share/qemu', 'usr/share/seabios', 'usr/lib/ipxe/qemu'];
  return {
    command: join(tree, 'usr/lib64/ld-linux-x86-64.so.2'),
    args: [
      '--library-path',
      libraries,
      join(tree, 'usr/bin/qemu-system-x86_64'),
      ...data.flatMap((path) => ['-L', join(tree, path)]),
    ],
    env: { QEMU_MODULE_DIR: join(libraries, 'qemu') },
  };
}

async function build(tree: string, say: Say): Promise<void> {
  const mirror = debianMirror();
  say(`Fetching qemu of Debian 13 from ${mirror} (about a minute); it is not installed`);
  const work = `${tree}.incomplete-${process.pid}`;
  await removeTree(work);
  const args = [
    '--variant=minbase',
    '--quiet',
    '--keyring=/usr/share/keyrings/debian-archive-keyring.gpg',
    '--include=qemu-system-x86',
    '--aptopt=APT::Install-Recommends "false"',
    '--aptopt=Acquire::Languages "none"',
    '--dpkgopt=path-exclude=/usr/share/doc/*',
    '--dpkgopt=path-exclude=/usr/share/locale/*',
    SUITE,
    work,
    `deb ${mirror} ${SUITE} main`,
  ];
  try {
    // It ends when this process does, however that ends.
    await run('setpriv', ['--pdeathsig', 'TERM', 'mmdebstrap', ...args], { timeout_ms: BUILD_LIMIT_MS });
    renameSync(work, tree);
  } finally {
    await removeTree(work);
  }
}
