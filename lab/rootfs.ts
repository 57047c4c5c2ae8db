import { createHash } from 'node:crypto';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync } from 'node:fs';
import { basename, join } from 'node:path';
import { buildDebian, debianArchives, debianRecipe } from '#src/approaches/images/debian.ts';
import { debianMirror } from '#src/approaches/images/mirror.ts';
import { run } from '#src/telemetry/exec.ts';
import { buildImages } from './images.ts';
import { removeOldLayers } from './layers.ts';
import { withLock } from './lock.ts';
import { cacheDir } from './names.ts';
import type { Say } from './say.ts';
import { removeTree } from './trees.ts';

/**
 * The root file system of the test hosts, built once and kept in the cache in two layers: `base` is Debian's packages
 * (a minute), `work` is what changes with this project (workloads, images, configuration; seconds). Each is keyed by
 * a hash of its recipe, built under a temporary name and renamed when complete: an interrupted build leaves nothing that
 * could be mistaken for a whole one.
 */
const PACKAGES = [
  'criu runc podman netavark aardvark-dns tini redis-server busybox-static',
  'docker.io docker-cli containerd containernetworking-plugins',
  'nftables iptables iproute2 iputils-ping iperf3 ethtool procps kmod curl',
  'acl attr rsync openssh-client openssh-server openssl ca-certificates python3-minimal',
].flatMap((row) => row.split(' '));
const BASE_RECIPE_VERSION = 1;
const WORK_RECIPE_VERSION = 1;
const LOCK_LIMIT_S = 900;

const here = import.meta.dirname;

export interface RootFileSystem {
  base: string;
  work: string;
  /** Programs for the machine's side: `enter` and `wire`. */
  tools: string;
}

export function lowerDirs(root: RootFileSystem): string {
  return `${root.work}:${root.base}`;
}

function hash(...parts: (string | Buffer)[]): string {
  const sum = createHash('sha256');
  for (const part of parts) sum.update(part).update('\0');
  return sum.digest('hex').slice(0, 16);
}

function treeParts(directory: string, ending = ''): (string | Buffer)[] {
  return readdirSync(directory, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith(ending))
    .map((entry) => join(entry.parentPath, entry.name))
    .sort()
    .flatMap((path) => [basename(path), readFileSync(path)]);
}

/** The layers that this checkout asks for, there or not. */
function wantedLayers(): RootFileSystem {
  const cache = join(cacheDir(), 'rootfs');
  const baseKey = hash(String(BASE_RECIPE_VERSION), ...debianRecipe(PACKAGES));
  const workKey = hash(
    baseKey,
    String(WORK_RECIPE_VERSION),
    ...treeParts(join(here, 'workloads'), '.c'),
    ...treeParts(join(here, 'image')),
  );
  const toolsKey = hash(process.arch, ...treeParts(join(here, 'host')), ...treeParts(join(here, 'wire')));
  return {
    base: join(cache, `base-${baseKey}`),
    work: join(cache, `work-${workKey}`),
    tools: join(cache, `tools-${toolsKey}`),
  };
}

export function rootFileSystemIsBuilt(): boolean {
  return Object.values(wantedLayers()).every((layer: string) => existsSync(layer));
}

export async function buildRootFileSystem(say: Say): Promise<RootFileSystem> {
  const root = wantedLayers();
  if (rootFileSystemIsBuilt()) return root;
  const cache = join(cacheDir(), 'rootfs');
  mkdirSync(cache, { recursive: true });
  await withLock(join(cache, '.lock'), LOCK_LIMIT_S, async () => {
    await complete(root.base, (path) => buildBase(path, say));
    await complete(root.work, (path) => buildWork(path, root.base, say));
    await complete(root.tools, (path) => buildTools(path));
    await removeOldLayers(cache, Object.values(root));
  });
  return root;
}

/**
 * The temporary name is this process's own: a build whose starter was killed may go on writing for a while, and must not
 * write into ours.
 */
async function complete(path: string, build: (temporary: string) => Promise<void>): Promise<void> {
  if (existsSync(path)) return;
  const temporary = `${path}.incomplete-${process.pid}`;
  await removeTree(temporary);
  mkdirSync(temporary);
  try {
    await build(temporary);
    renameSync(temporary, path);
  } finally {
    await removeTree(temporary);
  }
}

async function buildBase(path: string, say: Say): Promise<void> {
  say(`Building the root file system of the test hosts once, from ${debianMirror()} (about a minute)`);
  await buildDebian({
    what: 'The root file system of the test hosts',
    target: path,
    packages: PACKAGES,
    archives: debianArchives(cacheDir()),
  });
}

async function buildWork(path: string, base: string, say: Say): Promise<void> {
  say('Compiling the workloads and preparing their images');
  cpSync(join(here, 'image'), path, { recursive: true });
  const bin = join(path, 'usr', 'local', 'bin');
  mkdirSync(bin, { recursive: true });
  const workloads = readdirSync(join(here, 'workloads'))
    .filter((name) => name.endsWith('.c'))
    .sort();
  for (const source of workloads) {
    await compile(join(here, 'workloads', source), join(bin, basename(source, '.c')));
  }
  await buildImages(
    path,
    base,
    workloads.map((source) => basename(source, '.c')),
  );
}

async function buildTools(path: string): Promise<void> {
  for (const [room, name] of [
    ['host', 'enter'],
    ['wire', 'wire'],
  ] as const) {
    const source = join(here, room, `${name}.c`);
    if (existsSync(source)) await compile(source, join(path, name));
  }
}

/** Static, because workloads run in images that hold nothing but the program. */
async function compile(source: string, output: string): Promise<void> {
  await run('gcc', ['-O2', '-std=gnu17', '-Wall', '-static', '-pthread', '-o', output, source, '-lm'], {
    timeout_ms: 120_000,
  });
}
