import { createHash } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  statSync,
} from 'node:fs';
import { join } from 'node:path';
import { run } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { withLock } from '../lock.ts';
import { debianMirror } from '#src/approaches/images/mirror.ts';
import { cacheDir } from '../names.ts';
import { PATIENCE } from '../patience.ts';
import { BUILD_PREREQUISITES, installPackages } from '../prerequisites.ts';
import type { Say } from '../say.ts';
import { removeTree } from '../trees.ts';

/**
 * Kubernetes for the test hosts. No registry and no vendor's archive is needed: Debian 12's source package has all of it,
 * and Debian 12's own Go compiles it, so it is built once in a Debian 12 root and kept in the cache, keyed by a hash of
 * its recipe. It lies beside the hosts' root file system, not in it, so that those who do not ask for it have no part in it.
 */
const VERSION = 'v1.20.2';
/** The one Debian release whose source package has the whole of Kubernetes, and a Go that its vendored libraries know. */
const SOURCE_SUITE = 'bookworm';
const BUILD_PACKAGES = ['golang-go', 'make', 'dpkg-dev', 'patch', 'rsync', 'xz-utils'];
/** Programs that Debian has as packages, from the release of the hosts. */
const READY_SUITE = 'trixie';
const READY: Record<string, string> = {
  etcd: 'etcd-server',
  kubectl: 'kubectl',
  conntrack: 'conntrack',
};
const COMPILED = ['kubelet', 'kube-apiserver', 'kube-controller-manager', 'kube-scheduler', 'kube-proxy'];
const RECIPE_VERSION = 1;

const ROOT_LIMIT_MS = 900_000 * PATIENCE;
/** The first of them compiles what all have in common. */
const COMPILE_LIMIT_MS = 3_600_000 * PATIENCE;
const LOCK_LIMIT_S = 7200 * PATIENCE;
const UNUSED_MS_MIN = 7 * 24 * 3600 * 1000;
const here = import.meta.dirname;

/** Where every host sees the cache of Kubernetes, read-only. */
export const KUBERNETES_ON_HOST = '/opt/kubernetes';

/** There even when nothing was built, so that a host that is up already sees what is built later. */
export function kubernetesCache(): string {
  const path = join(cacheDir(), 'kubernetes');
  mkdirSync(path, { recursive: true });
  return path;
}

function key(): string {
  const sum = createHash('sha256');
  const recipe = [RECIPE_VERSION, process.arch, VERSION, SOURCE_SUITE, READY_SUITE, BUILD_PACKAGES, READY, COMPILED];
  sum.update(JSON.stringify(recipe));
  for (const file of ['build.sh', 'pause.c']) sum.update(readFileSync(join(here, file)));
  return sum.digest('hex').slice(0, 16);
}

/** Directory of the programs as the hosts see it. */
export function programsOnHost(): string {
  return `${KUBERNETES_ON_HOST}/${key()}`;
}

/** Builds what this checkout asks for, if it is not there. What an interrupted build had finished is not done again. */
export async function buildKubernetes(say: Say): Promise<void> {
  const cache = kubernetesCache();
  const done = join(cache, key());
  if (existsSync(done)) return;
  await installPackages(BUILD_PREREQUISITES, say);
  await withLock(join(cache, '.lock'), LOCK_LIMIT_S, async () => {
    if (existsSync(done)) return;
    const building = `${done}.incomplete`;
    const programs = join(building, 'programs');
    say(
      `Building Kubernetes ${VERSION} once, from Debian's source package: about ten minutes on two processors. ` +
        'Interrupted, it goes on where it was.',
    );
    mkdirSync(programs, { recursive: true });
    const root = join(building, 'root');
    if (!existsSync(root)) await makeRoot(root, say);
    for (const name of COMPILED) await compile(root, name, programs, say);
    for (const [name, debian] of Object.entries(READY)) await unpack(root, debian, name, programs);
    await run('gcc', ['-O2', '-Wall', '-static', '-o', join(programs, 'pause'), join(here, 'pause.c')]);
    renameSync(programs, done);
    await removeTree(building);
    await removeUnused(cache, key());
  });
}

function fetch(...words: string[]): string {
  return `--customize-hook=cd "$1/build" && APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get ${words.join(' ')}`;
}

/** A Debian 12 with Go and the source, whatever the machine itself is; also the ready packages, as they were fetched. */
async function makeRoot(path: string, say: Say): Promise<void> {
  const mirror = debianMirror();
  say(`Making the root file system that it is compiled in, from ${mirror}`);
  const temporary = `${path}.incomplete`;
  await removeTree(temporary);
  const ready = Object.values(READY).map((name) => `${name}/${READY_SUITE}`);
  const args = [
    '--variant=minbase',
    '--quiet',
    '--keyring=/usr/share/keyrings/debian-archive-keyring.gpg',
    `--include=${BUILD_PACKAGES.join(',')}`,
    '--aptopt=APT::Install-Recommends "false"',
    `--aptopt=APT::Default-Release "${SOURCE_SUITE}"`,
    '--aptopt=Acquire::Languages "none"',
    '--dpkgopt=path-exclude=/usr/share/doc/*',
    '--dpkgopt=path-exclude=/usr/share/man/*',
    '--customize-hook=mkdir "$1/build"',
    // apt checks signatures and digests of all of it.
    fetch('source', '--download-only', `kubernetes/${SOURCE_SUITE}`),
    fetch('download', ...ready),
    '--customize-hook=chroot "$1" sh -c "cd /build && dpkg-source --no-check -x kubernetes_*.dsc kubernetes"',
    SOURCE_SUITE,
    temporary,
    `deb ${mirror} ${SOURCE_SUITE} main`,
    `deb-src ${mirror} ${SOURCE_SUITE} main`,
    `deb ${mirror} ${READY_SUITE} main`,
  ];
  try {
    await run('setpriv', ['--pdeathsig', 'TERM', 'mmdebstrap', ...args], { timeout_ms: ROOT_LIMIT_MS });
  } catch (error) {
    throw failed('The root file system that Kubernetes is compiled in could not be made', error, {
      mend: `Check that ${mirror} can be reached and carries ${SOURCE_SUITE}, with its sources, and ${READY_SUITE}.`,
    });
  }
  renameSync(temporary, path);
}

async function compile(root: string, name: string, programs: string, say: Say): Promise<void> {
  if (existsSync(join(programs, name))) return;
  const started = Date.now();
  say(`Compiling ${name}`);
  copyFileSync(join(here, 'build.sh'), join(root, 'build', 'build.sh'));
  // Namespaces of its own: nothing of the compiler outlives this, and its mounts never show on the machine.
  const enter = 'mount -t proc proc "$1/proc"; exec chroot "$1" sh /build/build.sh /build/kubernetes "$2" "$3"';
  const args = ['--mount', '--pid', '--net', '--fork', '--kill-child', 'sh', '-ec', enter, 'sh', root, VERSION, name];
  try {
    await run('setpriv', ['--pdeathsig', 'KILL', 'unshare', ...args], { timeout_ms: COMPILE_LIMIT_MS });
  } catch (error) {
    throw failed(`${name} of Kubernetes could not be compiled`, error, {
      mend: 'See what the compiler says. It needs about 3 GiB of disk in the cache and 2 GiB of memory.',
    });
  }
  place(join(root, 'build', 'kubernetes', '_output', 'local', 'bin', 'linux', goArchitecture(), name), programs, name);
  say(`Compiled ${name} in ${Math.round((Date.now() - started) / 1000)} s`);
}

function goArchitecture(): string {
  return process.arch === 'x64' ? 'amd64' : process.arch;
}

/** Takes the one program out of a package; the packages it depends on are on the hosts already. */
async function unpack(root: string, debian: string, name: string, programs: string): Promise<void> {
  const build = join(root, 'build');
  const archive = readdirSync(build).find((file) => file.startsWith(`${debian}_`) && file.endsWith('.deb'));
  if (archive === undefined) throw new Error(`${debian} was not fetched`);
  const tree = join(build, `${debian}.tree`);
  await run('dpkg-deb', ['-x', join(build, archive), tree]);
  const found = ['usr/bin', 'usr/sbin'].map((bin) => join(tree, bin, name)).find((path) => existsSync(path));
  if (found === undefined) throw new Error(`${debian} has no program ${name}`);
  place(found, programs, name);
}

/** Whole or not at all: what has its name is not made again. */
function place(from: string, programs: string, name: string): void {
  const temporary = join(programs, `.${name}`);
  copyFileSync(from, temporary);
  renameSync(temporary, join(programs, name));
}

function failed(message: string, error: unknown, { mend }: { mend: string }): UmsError {
  return new UmsError('UMS_E_LAB', {
    message: `${message}: ${error instanceof Error ? error.message : String(error)}`,
    fault: 'user',
    state: 'What had been finished is kept; the next run goes on from there.',
    mend,
    cause: error,
    ...(error instanceof UmsError && error.detail !== undefined ? { detail: error.detail } : {}),
  });
}

/** Drops what other recipes built, once it is a week old and no process runs from it. */
async function removeUnused(cache: string, wanted: string): Promise<void> {
  const running = runningPrograms();
  for (const name of readdirSync(cache)) {
    const path = join(cache, name);
    if (!/^[0-9a-f]{16}(\.incomplete)?$/.test(name) || name.startsWith(wanted)) continue;
    if (Date.now() - statSync(path).mtimeMs < UNUSED_MS_MIN) continue;
    if (!running.some((program) => program.includes(name))) await removeTree(path);
  }
}

function runningPrograms(): string[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((pid) => {
      try {
        return [readlinkSync(`/proc/${pid}/exe`)];
      } catch {
        // A kernel thread, or a process that ended meanwhile.
        return [];
      }
    });
}
