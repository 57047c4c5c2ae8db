import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { AGENT_NODE_FLAGS } from '#src/agent/node-flags.ts';
import { copyPackages, copyParts } from '#src/approaches/images/app.ts';
import { compileAhead } from '#src/approaches/images/compiled.ts';
import { run } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { withLock } from '../lock.ts';
import { cacheDir } from '../names.ts';
import { installPackages, installPrerequisites } from '../prerequisites.ts';
import { buildRootFileSystem, type RootFileSystem } from '../rootfs.ts';
import type { Say } from '../say.ts';
import { copyTree, initialFileSystem, linkTree, makeDisk } from './disks.ts';
import { type Kernel, stockKernel } from './kernel.ts';
import { fetchQemu, type Qemu } from './qemu.ts';

/** Everything that a virtual machine boots from. All but the checkout is made once and kept in the cache. */
export interface MachineDisks {
  qemu: Qemu;
  kernel: string;
  initrd: Buffer;
  /** In the order in which the machine sees them. */
  images: string[];
}

const PACKAGES = [
  { package: 'mmdebstrap', proof: '/usr/bin/mmdebstrap', why: 'unpacks qemu for it' },
  {
    package: 'debian-archive-keyring',
    proof: '/usr/share/keyrings/debian-archive-keyring.gpg',
    why: 'checks what is fetched',
  },
  { package: 'e2fsprogs', proof: '/sbin/mke2fs', why: 'makes its disks' },
  { package: 'xz-utils', proof: '/usr/bin/xz', why: 'unpacks kernel modules' },
] as const;
const CHECKOUT = resolve(import.meta.dirname, '..', '..');
const CHECKOUT_PARTS = ['src', 'lab', 'bench', 'test', 'tools', 'package.json', 'package-lock.json', 'tsconfig.json'];
const LOCK_LIMIT_S = 900;

export async function prepareDisks(say: Say): Promise<MachineDisks> {
  if (process.arch !== 'x64') {
    throw new UmsError('UMS_E_PREREQUISITE', {
      message: `The virtual machine is one for x86-64, this machine is ${process.arch}`,
      fault: 'user',
      mend: 'Run this on an x86-64 machine.',
    });
  }
  await installPrerequisites(say);
  await installPackages(PACKAGES, say);
  const root = await buildRootFileSystem(say);
  const cache = join(cacheDir(), 'vm');
  mkdirSync(cache, { recursive: true });
  return withLock(join(cache, '.lock'), LOCK_LIMIT_S, async () => {
    const qemu = await fetchQemu(cache, say);
    const kernel = await stockKernel(cache, root.base, say);
    const images = [
      await rootDisk(cache, root, kernel, say),
      await packagesDisk(cache),
      await makeDisk(join(cache, `${basename(root.work)}.ext4`), (tree) => linkTree(root.work, tree)),
      await checkoutDisk(cache, root),
    ];
    return { qemu, kernel: kernel.image, initrd: await initialFileSystem(kernel, root.base), images };
  });
}

function rootDisk(cache: string, root: RootFileSystem, kernel: Kernel, say: Say): Promise<string> {
  return makeDisk(join(cache, `${basename(root.base)}-${kernel.version}.ext4`), async (tree) => {
    say('Making the disks of the virtual machine');
    await linkTree(root.base, tree);
    copyTree(join(kernel.tree, 'lib', 'modules'), join(tree, 'usr', 'lib', 'modules'));
  });
}

/** Node and the npm packages, by the lock file. */
function packagesDisk(cache: string): Promise<string> {
  const modules = realpathSync(join(CHECKOUT, 'node_modules'));
  const sum = createHash('sha256').update(process.version).update(modules);
  for (const file of ['package.json', 'package-lock.json']) sum.update(readFileSync(join(CHECKOUT, file)));
  return makeDisk(join(cache, `packages-${sum.digest('hex').slice(0, 16)}.ext4`), async (tree) => {
    const bin = join(tree, 'node', 'bin');
    mkdirSync(bin, { recursive: true });
    await run('cp', ['--dereference', process.execPath, join(bin, 'node')]);
    await run('cp', ['--archive', modules, join(tree, 'node_modules')], { timeout_ms: 120_000 });
  });
}

/** What tests in the machine load beside the command line. */
const OF_TESTS = ['lab/lab.ts', 'test/e2e/support/mosaic.ts', 'test/e2e/support/moves.ts'];

/**
 * The checkout as it is now, a tar that the machine unpacks; names and tools of the lab's layers go along, and what Node has
 * compiled of it: emulated, that takes longer than anything else.
 */
async function checkoutDisk(cache: string, root: RootFileSystem): Promise<string> {
  const stage = join(cache, `checkout-${process.pid}`);
  const image = join(cache, `checkout-${createHash('sha256').update(CHECKOUT).digest('hex').slice(0, 16)}.tar`);
  const own = join(stage, 'lab', 'vm');
  mkdirSync(own, { recursive: true });
  try {
    const names = { BASE: basename(root.base), WORK: basename(root.work), TOOLS: basename(root.tools) };
    const lines = Object.entries(names).map(([name, value]) => `${name}=${value}\n`);
    writeFileSync(join(own, 'names.env'), lines.join(''));
    copyTree(root.tools, join(own, 'tools'));
    const parts = CHECKOUT_PARTS.filter((part) => existsSync(join(CHECKOUT, part)));
    const app = join(stage, 'app');
    await copyParts(CHECKOUT, app, parts);
    await copyPackages(CHECKOUT, stage);
    await compileAhead(app, join(stage, 'compiled'), AGENT_NODE_FLAGS, OF_TESTS);
    await run('tar', ['--numeric-owner', '-cf', image, '-C', CHECKOUT, ...parts, '-C', stage, 'lab', 'compiled']);
  } finally {
    rmSync(stage, { recursive: true, force: true });
  }
  return image;
}
