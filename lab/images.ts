import { chmodSync, copyFileSync, existsSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { run } from '#src/telemetry/exec.ts';

/**
 * Container images for the test hosts. No registry is needed: each is a tar of a root file system made here of Debian's
 * own binaries or of a static workload, imported into an engine when it is wanted (`Host.importImage`). The same trees
 * lie beside it as runc bundles' roots, /opt/bundles/NAME/rootfs.
 */
export async function buildImages(work: string, base: string, workloads: readonly string[]): Promise<void> {
  const images = join(work, 'opt', 'images');
  mkdirSync(images, { recursive: true });
  for (const name of workloads) {
    const root = makeTree(work, base, name);
    copyFileSync(join(work, 'usr', 'local', 'bin', name), join(root, 'bin', name));
    await pack(root, join(images, `${name}.tar`));
  }
  await pack(makeTree(work, base, 'busybox'), join(images, 'busybox.tar'));
  const redis = makeTree(work, base, 'redis');
  for (const program of ['/usr/bin/redis-server', '/usr/bin/redis-cli']) await copyProgram(base, redis, program);
  mkdirSync(join(redis, 'data'));
  await pack(redis, join(images, 'redis.tar'));
}

/** A tree with a shell, so that a person can look around in any of the containers. */
function makeTree(work: string, base: string, name: string): string {
  const root = join(work, 'opt', 'bundles', name, 'rootfs');
  for (const directory of [
    'bin',
    'dev',
    'etc',
    'proc',
    'root',
    'sys',
    'tmp',
    'usr/bin',
    'var/lib',
    'var/tmp',
    'run',
    'srv',
  ]) {
    mkdirSync(join(root, directory), { recursive: true });
  }
  chmodSync(join(root, 'tmp'), 0o1777);
  writeFileSync(join(root, 'etc', 'passwd'), 'root:x:0:0:root:/root:/bin/sh\nredis:x:100:100:redis:/data:/bin/sh\n');
  writeFileSync(join(root, 'etc', 'group'), 'root:x:0:\nredis:x:100:\n');
  const busybox = ['usr/bin/busybox', 'bin/busybox'].map((path) => join(base, path)).find((path) => existsSync(path));
  if (busybox === undefined) throw new Error('the base has no busybox');
  copyFileSync(busybox, join(root, 'bin', 'busybox'));
  for (const applet of APPLETS) symlinkSync('busybox', join(root, 'bin', applet));
  return root;
}

const APPLETS = [
  'sh ls cat echo sleep tail head kill ps mkdir rm cp mv ln date env touch stat',
  'grep sed awk wc id mount df du dd sync true false test ip nc wget hostname seq',
  'sort uniq sha256sum md5sum mkfifo chmod chown find httpd',
].flatMap((row) => row.split(' '));

/** Copies a program of the base with the libraries that its loader names. */
async function copyProgram(base: string, root: string, program: string): Promise<void> {
  const { stdout } = await run('chroot', [base, 'ldd', program]);
  const libraries = [...stdout.matchAll(/(\/[^\s]+)\s+\(0x/g)]
    .map((match) => match[1] ?? '')
    .filter((path) => path !== '');
  for (const path of [program, ...libraries]) {
    const target = join(root, path);
    mkdirSync(dirname(target), { recursive: true });
    const inBase = join(base, path);
    // Links in the base are absolute within the base, so its own view of the path is what counts.
    const real = await run('chroot', [base, 'readlink', '-f', path]);
    rmSync(target, { force: true });
    copyFileSync(join(base, real.stdout.trim()), target);
    if (!existsSync(inBase)) throw new Error(`${path} is not in the base`);
  }
}

async function pack(root: string, tar: string): Promise<void> {
  await run('tar', ['--numeric-owner', '--sort=name', '-C', root, '-cf', tar, '.']);
}
