import { createHash } from 'node:crypto';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { run } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { buildImages } from './images.ts';
import { removeOldLayers } from './layers.ts';
import { withLock } from './lock.ts';
import { debianMirror } from './mirror.ts';
import { cacheDir } from './names.ts';
import type { Say } from './say.ts';
import { removeTree } from './trees.ts';

/**
 * The root file system of the test hosts, built once and kept in the cache in two layers: `base` is Debian's packages
 * (a minute), `work` is what changes with this project (workloads, images, configuration; seconds). Each is keyed by
 * a hash of its recipe, built under a temporary name and renamed when complete: an interrupted build leaves nothing that
 * could be mistaken for a whole one.
 */
const SUITE = 'trixie';
/** CRIU 4.2.1: Debian 13's 4.1.1 cannot dump an internet socket on kernels that refuse SO_PASSCRED for one. */
const FROM_TESTING = ['criu', 'libcriu2', 'libcompel1', 'libnet9', 'libnl-3-200'];
const PACKAGES = [
  'criu runc podman netavark aardvark-dns tini redis-server busybox-static',
  'docker.io docker-cli containerd containernetworking-plugins',
  'nftables iptables iproute2 iputils-ping iperf3 ethtool procps kmod curl',
  'acl attr rsync openssh-client openssh-server openssl ca-certificates python3-minimal',
].flatMap((row) => row.split(' '));
const BASE_RECIPE_VERSION = 1;
const WORK_RECIPE_VERSION = 1;
const BUILD_LIMIT_MS = 900_000;
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
  const baseKey = hash(String(BASE_RECIPE_VERSION), process.arch, SUITE, PACKAGES.join(' '), FROM_TESTING.join(' '));
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
  const mirror = debianMirror();
  say(`Building the root file system of the test hosts once, from ${mirror} (about a minute)`);
  const preferences = `${path}.preferences`;
  writeFileSync(
    preferences,
    `Package: *\nPin: release a=testing\nPin-Priority: 100\n\nPackage: ${FROM_TESTING.join(' ')}\nPin: release a=testing\nPin-Priority: 990\n`,
  );
  const args = [
    '--variant=minbase',
    '--quiet',
    // Not the keys that this machine happens to trust: Debian's own, as its package delivers them.
    '--keyring=/usr/share/keyrings/debian-archive-keyring.gpg',
    `--include=${PACKAGES.join(',')}`,
    `--setup-hook=mkdir -p "$1"/etc/apt/preferences.d && cp ${preferences} "$1"/etc/apt/preferences.d/testing`,
    '--aptopt=APT::Install-Recommends "false"',
    '--aptopt=Acquire::Languages "none"',
    '--dpkgopt=path-exclude=/usr/share/doc/*',
    '--dpkgopt=path-exclude=/usr/share/man/*',
    '--dpkgopt=path-exclude=/usr/share/locale/*',
    SUITE,
    path,
    `deb ${mirror} ${SUITE} main`,
    `deb [check-valid-until=no] ${mirror} testing main`,
  ];
  try {
    // It ends when this process does, however that ends.
    await run('setpriv', ['--pdeathsig', 'TERM', 'mmdebstrap', ...args], {
      timeout_ms: BUILD_LIMIT_MS,
      pickLine: aptLine,
    });
  } catch (error) {
    throw new UmsError('UMS_E_LAB', {
      message: `The root file system of the test hosts could not be built: ${error instanceof Error ? error.message : String(error)}`,
      fault: 'user',
      state: 'Nothing was kept; the next run begins anew.',
      mend: `Check that ${mirror} can be reached and carries ${SUITE} and testing.`,
      cause: error,
      ...(error instanceof UmsError && error.detail !== undefined ? { detail: error.detail } : {}),
    });
  } finally {
    rmSync(preferences, { force: true });
  }
}

function aptLine(stderr: string): string | undefined {
  return stderr.split('\n').findLast((line) => /^(E|Err|error):/i.test(line.trim()));
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
