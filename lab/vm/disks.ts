import { cpSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { run } from '#src/telemetry/exec.ts';
import { removeTree } from '../trees.ts';
import { type CpioEntry, cpio } from './cpio.ts';
import type { Kernel } from './kernel.ts';

/** The disks of a virtual machine: images made once from directories that the cache already has, and never written to. */
const BUILD_LIMIT_MS = 300_000;
const MARGIN = 1.25;
const SPARE_BYTES = 32 * 1024 * 1024;
const DIRECTORY = 0o40755;
const PROGRAM = 0o100755;
/** What must be there before the root can be mounted. */
const EARLY_MODULES = ['drivers/block/virtio_blk', 'fs/overlayfs/overlay'];

export async function makeDisk(path: string, fill: (directory: string) => Promise<void>): Promise<string> {
  if (existsSync(path)) return path;
  const tree = `${path}.tree-${process.pid}`;
  const image = `${path}.incomplete-${process.pid}`;
  await removeTree(tree);
  mkdirSync(tree, { recursive: true });
  try {
    await fill(tree);
    const { stdout } = await run('du', ['-s', '--apparent-size', '--block-size=1', tree], {
      timeout_ms: BUILD_LIMIT_MS,
    });
    const bytes = Math.ceil((Number.parseInt(stdout, 10) * MARGIN + SPARE_BYTES) / 1024 / 1024);
    await run('mke2fs', ['-q', '-t', 'ext4', '-O', '^has_journal', '-m', '0', '-d', tree, image, `${bytes}M`], {
      timeout_ms: BUILD_LIMIT_MS,
    });
    renameSync(image, path);
  } finally {
    await removeTree(tree);
    rmSync(image, { force: true });
  }
  return path;
}

/** Hard links cost nothing; nobody writes to either. */
export async function linkTree(from: string, to: string): Promise<void> {
  await run('cp', ['--archive', '--link', '--no-target-directory', from, to], { timeout_ms: BUILD_LIMIT_MS });
}

export function copyTree(from: string, to: string): void {
  cpSync(from, to, { recursive: true, verbatimSymlinks: true });
}

function directory(path: string): CpioEntry {
  return { path, mode: DIRECTORY, content: Buffer.alloc(0) };
}

/** What the kernel starts with: a shell, the driver of the disks, and the script that mounts them. */
export async function initialFileSystem(kernel: Kernel, base: string): Promise<Buffer> {
  const modules = await Promise.all(
    EARLY_MODULES.map(async (name) => {
      const packed = join(kernel.tree, 'lib', 'modules', kernel.version, 'kernel', `${name}.ko.xz`);
      const { stdout } = await run('sh', ['-c', 'xz -dc "$1" | base64 -w0', 'sh', packed]);
      return { path: `modules/${name.split('/').at(-1)}.ko`, mode: PROGRAM, content: Buffer.from(stdout, 'base64') };
    }),
  );
  return cpio([
    ...['bin', 'dev', 'proc', 'sys', 'modules', 'lower', 'writable', 'root'].map(directory),
    { path: 'bin/busybox', mode: PROGRAM, content: readFileSync(join(base, 'usr', 'bin', 'busybox')) },
    { path: 'init', mode: PROGRAM, content: readFileSync(join(import.meta.dirname, 'early.sh')) },
    ...modules,
  ]);
}
