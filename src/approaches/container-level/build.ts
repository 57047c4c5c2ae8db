import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { chmod, cp, mkdir, rename, rm, symlink, utimes, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { run } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { APP_PARTS, copyPackages, copyParts } from '../images/app.ts';
import { diffId, type ImageParts, packArchive } from '../images/archive.ts';
import { compileAhead, compiledExports } from '../images/compiled.ts';
import { buildDebian, debianArchives, debianRecipe } from '../images/debian.ts';
import { APP, CAPSULE_IMAGE, COMPILED, INIT, NODE } from './layout.ts';

/**
 * The capsule's image, in layers that are kept, each under a hash of what it is made of: Debian with CRIU and runc, Node
 * with the packages that ums runs on, ums itself, and what Node has compiled of it. A change of ums costs the last two alone.
 */
const RECIPE_VERSION = 1;
const PACKAGES = 'criu runc skopeo umoci iproute2 iptables nftables mount procps'.split(' ');
const PROGRAMS = [
  { program: 'mmdebstrap', package: 'mmdebstrap' },
  { program: 'tar', package: 'tar' },
  { program: 'setpriv', package: 'util-linux' },
] as const;
/** Layers and images that nobody has asked for in this time are removed when a new one is built. */
const KEPT_MS = 14 * 24 * 3600 * 1000;
const KEPT_IMAGE_MS = 600 * 1000;
const PACK_LIMIT_MS = 300_000;
const ARCHITECTURES: Readonly<Record<string, string>> = { x64: 'amd64', arm64: 'arm64' };

/** skopeo’s package brings plugins of Podman’s network along. */
const WITHOUT = ['/usr/lib/cni/*'] as const;
/** Label with what the image was made of, by which one that is loaded already is known. */
export const KEY_LABEL = 'ums.capsule.key';

export interface BuiltCapsule {
  key: string;
  archive: string;
  size_bytes: number;
  /** False when it lay in the cache. */
  built: boolean;
}

type Say = (text: string) => void;

/** `agentFlags`: how Node is started for an agent, and for what starts it in the capsule (capsule-init.pl). */
export async function buildCapsule(
  checkout: string,
  cache: string,
  agentFlags: readonly string[],
  say: Say,
): Promise<BuiltCapsule> {
  const directory = join(cache, 'capsule');
  const appKey = hash('app', String(RECIPE_VERSION), ...appParts(checkout));
  const modulesKey = hash('node', process.version, process.arch, readFileSync(join(checkout, 'package-lock.json')));
  const debianKey = hash('debian', String(RECIPE_VERSION), ...debianRecipe(PACKAGES), ...WITHOUT);
  const compiledKey = hash('compiled', String(RECIPE_VERSION), modulesKey, appKey, ...agentFlags);
  const key = hash(debianKey, modulesKey, appKey, compiledKey);
  const archive = join(directory, `image-${key}.tar`);
  if (existsSync(archive)) {
    await touch(archive);
    return { key, archive, size_bytes: statSync(archive).size, built: false };
  }
  await mkdir(directory, { recursive: true });
  const layers = [
    await keptLayer(join(directory, `debian-${debianKey}`), async (tar) => {
      await requirePrograms();
      say('Building the capsule’s Debian with CRIU and runc, once (about half a minute)');
      await buildDebian({
        what: 'The capsule’s root file system',
        target: tar,
        packages: PACKAGES,
        archives: debianArchives(cache),
        withoutDevices: true,
        without: WITHOUT,
      });
    }),
    await keptLayer(join(directory, `node-${modulesKey}`), (tar) => packed(tar, (tree) => putNode(checkout, tree))),
    await keptLayer(join(directory, `app-${appKey}`), (tar) => packed(tar, (tree) => putApp(checkout, tree))),
    await keptLayer(join(directory, `compiled-${compiledKey}`), (tar) =>
      packed(tar, (tree) => putCompiled(checkout, tree, agentFlags)),
    ),
  ];
  say('Putting the image together');
  await packArchive(imageOf(key, layers), archive);
  await removeOld(directory, archive);
  return { key, archive, size_bytes: statSync(archive).size, built: true };
}

function imageOf(key: string, layers: readonly KeptLayer[]): ImageParts {
  return {
    names: [CAPSULE_IMAGE],
    layers: layers.map((layer) => layer.path),
    config: {
      architecture: ARCHITECTURES[process.arch] ?? process.arch,
      os: 'linux',
      config: {
        Entrypoint: [INIT],
        Env: ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'],
        WorkingDir: '/',
        StopSignal: 'SIGTERM',
        Labels: { 'org.opencontainers.image.title': 'ums capsule', [KEY_LABEL]: key },
      },
      rootfs: { type: 'layers', diff_ids: layers.map((layer) => layer.diffId) },
    },
  };
}

function hash(...parts: (string | Buffer)[]): string {
  const sum = createHash('sha256');
  for (const part of parts) sum.update(part).update('\0');
  return sum.digest('hex').slice(0, 16);
}

/** Tests run from a checkout only, so that a change of one does not make another image. */
const ofImage = (path: string): boolean => !/\.(test|test-support|fixture)\.|\/testing\/|conformance\.ts$/.test(path);

function appParts(checkout: string): (string | Buffer)[] {
  const files = readdirSync(join(checkout, 'src'), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .filter(ofImage)
    .sort();
  return [...files, join(checkout, 'package.json')].flatMap((path) => [
    path.slice(checkout.length),
    String(statSync(path).mode & 0o777),
    readFileSync(path),
  ]);
}

/** A layer of the cache; made under a name of this process's own and renamed when it is whole. */
async function keptLayer(stem: string, make: (tar: string) => Promise<void>): Promise<KeptLayer> {
  const path = `${stem}.tar`;
  const known = `${stem}.diff-id`;
  if (!existsSync(known)) {
    const tar = `${stem}.incomplete-${process.pid}.tar`;
    try {
      await make(tar);
      const id = await diffId(tar);
      await rename(tar, path);
      await writeFile(`${tar}.id`, id);
      await rename(`${tar}.id`, known);
    } finally {
      for (const left of [tar, `${tar}.id`]) await rm(left, { force: true });
    }
  }
  await touch(path);
  await touch(known);
  return { path, diffId: readFileSync(known, 'utf8') };
}

interface KeptLayer {
  path: string;
  diffId: string;
}

async function touch(path: string): Promise<void> {
  const now = new Date();
  await utimes(path, now, now);
}

async function packed(tar: string, fill: (tree: string) => Promise<void>): Promise<void> {
  const tree = `${tar}.tree`;
  try {
    await rm(tree, { recursive: true, force: true });
    await mkdir(tree, { recursive: true, mode: 0o755 });
    await fill(tree);
    await packTree(tree, tar);
  } finally {
    await rm(tree, { recursive: true, force: true });
  }
}

async function putNode(checkout: string, tree: string): Promise<void> {
  const node = join(tree, NODE);
  await mkdir(dirname(node), { recursive: true });
  await cp(process.execPath, node, { dereference: true });
  await chmod(node, 0o755);
  await copyPackages(checkout, join(tree, APP));
}

async function putApp(checkout: string, tree: string): Promise<void> {
  await putSources(checkout, join(tree, APP));
  const command = join(tree, 'usr', 'local', 'bin', 'ums');
  await mkdir(dirname(command), { recursive: true });
  await writeFile(
    command,
    `#!/bin/sh\nunset NODE_OPTIONS\nexport ${compiledExports(COMPILED)}\nexec ${NODE} --disable-warning=ExperimentalWarning ${APP}/src/cli/main.ts "$@"\n`,
  );
  await chmod(command, 0o755);
  const init = join(tree, INIT);
  await mkdir(dirname(init), { recursive: true });
  await symlink(`${APP}/src/approaches/container-level/${basename(INIT)}.pl`, init);
}

async function putSources(checkout: string, app: string): Promise<void> {
  await copyParts(checkout, app, APP_PARTS);
  for (const entry of readdirSync(join(app, 'src'), { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name);
    if (entry.isFile() && !ofImage(path)) await rm(path);
  }
}

/** Compiled from a copy at the place where it will be. */
async function putCompiled(checkout: string, tree: string, agentFlags: readonly string[]): Promise<void> {
  const app = join(tree, APP);
  await putSources(checkout, app);
  await copyPackages(checkout, app);
  await compileAhead(app, join(tree, COMPILED), agentFlags);
  await rm(app, { recursive: true });
}

async function requirePrograms(): Promise<void> {
  const missing: string[] = [];
  for (const { program, package: name } of PROGRAMS) {
    const { exitCode } = await run('sh', ['-c', 'command -v "$1"', 'sh', program], { okExitCodes: [0, 1, 127] });
    if (exitCode !== 0) missing.push(name);
  }
  if (!existsSync('/usr/share/keyrings/debian-archive-keyring.gpg')) missing.push('debian-archive-keyring');
  if (missing.length === 0) return;
  throw new UmsError('UMS_E_PREREQUISITE', {
    message: `Building the capsule needs ${missing.join(', ')}`,
    fault: 'user',
    state: 'Nothing was built.',
    mend: `apt install ${missing.join(' ')}`,
  });
}

/** The same tree gives the same tar: owners, order and times say nothing of the machine that packed it. */
async function packTree(tree: string, tar: string): Promise<void> {
  const args = ['--owner=0', '--group=0', '--numeric-owner', '--sort=name', '--mtime=@0'];
  await run('tar', [...args, '-C', tree, '-cf', tar, '.'], { timeout_ms: PACK_LIMIT_MS });
}

/** Whether what lies in the cache was made or used lately; half-made things of processes that have ended go, too. */
async function removeOld(directory: string, fresh: string): Promise<void> {
  for (const name of readdirSync(directory)) {
    const path = join(directory, name);
    const pid = /\.incomplete-(\d+)/.exec(name)?.[1];
    const abandoned = pid !== undefined && !existsSync(`/proc/${pid}`);
    // An image is put together of its layers in a second; keeping each would fill the disk.
    const limit_ms = name.startsWith('image-') ? KEPT_IMAGE_MS : KEPT_MS;
    const old = pid === undefined && path !== fresh && Date.now() - statSync(path).mtimeMs > limit_ms;
    if (abandoned || old) await rm(path, { recursive: true, force: true });
  }
}
