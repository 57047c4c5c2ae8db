import { existsSync, mkdirSync, readdirSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { run } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { debianMirror } from '#src/approaches/images/mirror.ts';
import type { Say } from '../say.ts';
import { removeTree } from '../trees.ts';

/** A stock kernel of Debian, unpacked: nothing of it is installed on this machine. */
export interface Kernel {
  version: string;
  image: string;
  /** Directory that holds lib/modules/VERSION. */
  tree: string;
}

const SUITE = 'trixie';
const META_PACKAGE = 'linux-image-cloud-amd64';
const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg';
const FETCH_LIMIT_MS = 300_000;

/** Fetches Debian's kernel for cloud machines once: the newest of its suite when it is first wanted. */
export async function stockKernel(cache: string, base: string, say: Say): Promise<Kernel> {
  const directory = join(cache, `kernel-${SUITE}`);
  if (!existsSync(directory)) await fetchKernel(directory, base, say);
  const image = readdirSync(join(directory, 'boot')).find((name) => name.startsWith('vmlinuz-'));
  if (image === undefined) throw new Error(`${directory} holds no kernel`);
  return {
    version: image.slice('vmlinuz-'.length),
    image: join(directory, 'boot', image),
    tree: join(directory, 'usr'),
  };
}

async function fetchKernel(directory: string, base: string, say: Say): Promise<void> {
  const mirror = debianMirror();
  say(`Fetching Debian's kernel ${META_PACKAGE} (${SUITE}) from ${mirror}, about 35 MB; it is not installed`);
  const work = `${directory}.incomplete-${process.pid}`;
  await removeTree(work);
  mkdirSync(work, { recursive: true });
  try {
    const archive = await download(work, mirror);
    const tree = join(work, 'tree');
    await run('dpkg-deb', ['--extract', archive, tree], { timeout_ms: FETCH_LIMIT_MS });
    await indexModules(tree, base);
    renameSync(tree, directory);
  } finally {
    await removeTree(work);
  }
}

/** apt with directories and sources of its own: it checks Debian's signatures and touches nothing of the machine's. */
async function download(work: string, mirror: string): Promise<string> {
  for (const part of ['state/lists/partial', 'cache/archives/partial', 'etc']) {
    mkdirSync(join(work, part), { recursive: true });
  }
  writeFileSync(join(work, 'sources.list'), `deb [signed-by=${KEYRING}] ${mirror} ${SUITE} main\n`);
  writeFileSync(join(work, 'status'), '');
  const settings = {
    'Dir::State': join(work, 'state'),
    'Dir::State::status': join(work, 'status'),
    'Dir::Cache': join(work, 'cache'),
    'Dir::Etc': join(work, 'etc'),
    'Dir::Etc::SourceList': join(work, 'sources.list'),
    'Dir::Etc::SourceParts': '/dev/null',
    'APT::Architecture': 'amd64',
    'APT::Sandbox::User': 'root',
    'Acquire::Languages': 'none',
  };
  const options = Object.entries(settings).flatMap(([name, value]) => ['-o', `${name}=${value}`]);
  const limits = { cwd: work, timeout_ms: FETCH_LIMIT_MS };
  await run('apt-get', [...options, '-qq', 'update'], limits);
  const { stdout } = await run('apt-cache', [...options, 'depends', META_PACKAGE], limits);
  const name = /Depends: (linux-image-\S+)/.exec(stdout)?.[1];
  if (name === undefined) throw new UmsError('UMS_E_LAB', { message: `${META_PACKAGE} names no kernel`, fault: 'ums' });
  await run('apt-get', [...options, '-qq', 'download', name], limits);
  const archive = readdirSync(work).find((file) => file.endsWith('.deb'));
  if (archive === undefined) throw new UmsError('UMS_E_LAB', { message: `${name} was not fetched`, fault: 'ums' });
  return join(work, archive);
}

/** depmod, of the test hosts' own root: this machine need not have one. */
async function indexModules(tree: string, base: string): Promise<void> {
  const versions = readdirSync(join(tree, 'usr', 'lib', 'modules'));
  const libraries = [join(base, 'usr/lib/x86_64-linux-gnu'), join(base, 'usr/lib')].join(':');
  const loader = join(base, 'usr/lib64/ld-linux-x86-64.so.2');
  for (const version of versions) {
    const depmod = ['--argv0', 'depmod', '--library-path', libraries, join(base, 'usr/bin/kmod')];
    await run(loader, [...depmod, '--basedir', join(tree, 'usr'), version], { timeout_ms: FETCH_LIMIT_MS });
  }
}
