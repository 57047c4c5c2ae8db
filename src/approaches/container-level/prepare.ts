import { existsSync, readFileSync } from 'node:fs';
import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { isMissing } from '#src/drivers/oci/cgroup.ts';
import type { ImageConfig } from '../images/config.ts';
import { bundleConfig, capabilitiesOf } from './bundle-config.ts';
import { BUNDLE, SERVICE } from './layout.ts';
import { HEALTH, STOP_SIGNAL, UNPACKED } from './nested.ts';
import { mergeSettings, runAs, type Settings } from './settings.ts';
import { copyRootfs, unpackImage } from './unpack.ts';
import { accountOf } from './users.ts';

export interface ServiceSource {
  image?: string | undefined;
  rootfs?: string | undefined;
  insecure: boolean;
}

/** Variables of the capsule's own, and those that engines set for what they take to be the service. */
const NOT_THE_SERVICES = /^(?:PATH|HOME|HOSTNAME|TERM|container|UMS_\w*)=/;

/** The environment that the engine gave to the capsule is meant for the service. */
export function inheritedEnv(environ: string): string[] {
  return environ.split('\0').filter((entry) => /^[^=]+=/.test(entry) && !NOT_THE_SERVICES.test(entry));
}

/**
 * Makes the service's bundle of its image, whole beside its place and moved there in one step. Once: what became of it
 * since, also that it moved away, is not undone by a restart of the capsule.
 */
export async function makeBundle(source: ServiceSource, asked: Settings, hostname: string): Promise<void> {
  if (existsSync(UNPACKED)) return;
  if (!existsSync(BUNDLE)) {
    const draft = `${BUNDLE}.new`;
    await rm(draft, { recursive: true, force: true });
    await mkdir(draft, { recursive: true, mode: 0o700 });
    const rootfs = join(draft, 'rootfs');
    const image = await fill(source, rootfs);
    const inherited = inheritedEnv(readFileSync('/proc/1/environ', 'utf8'));
    const settings = mergeSettings({ env: inherited }, asked);
    await writeConfig(draft, image, settings, settings.hostname ?? hostname);
    await furnish(rootfs);
    await rename(draft, BUNDLE);
  }
  await mkdir(dirname(UNPACKED), { recursive: true });
  await writeFile(UNPACKED, '');
}

async function fill({ image, rootfs: from, insecure }: ServiceSource, rootfs: string): Promise<ImageConfig> {
  if (image !== undefined) return await unpackImage(image, rootfs, { insecure });
  if (from !== undefined) await copyRootfs(from, rootfs);
  return {};
}

async function writeConfig(draft: string, image: ImageConfig, asked: Settings, hostname: string): Promise<void> {
  const run = runAs(image, asked);
  const inImage = (path: string): string => readOrEmpty(join(draft, 'rootfs', path));
  const config = bundleConfig({
    run,
    account: accountOf(run.user, run.groups, inImage('etc/passwd'), inImage('etc/group')),
    asked,
    hostname,
    capabilities: ownCapabilities(),
    cgroup: `/${SERVICE}`,
    annotations: {
      [STOP_SIGNAL]: run.stopSignal,
      ...(run.health === undefined ? {} : { [HEALTH]: JSON.stringify(run.health) }),
    },
  });
  await writeFile(join(draft, 'config.json'), JSON.stringify(config, undefined, 2));
}

export function ownCapabilities(): Set<string> {
  const mask = /^CapBnd:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0';
  return capabilitiesOf(mask);
}

/** The service shares the capsule's network, so it knows names as the capsule does. */
async function furnish(rootfs: string): Promise<void> {
  await mkdir(join(rootfs, 'etc'), { recursive: true });
  for (const name of ['resolv.conf', 'hosts', 'hostname']) {
    const text = readOrEmpty(`/etc/${name}`);
    if (text === '') continue;
    const path = join(rootfs, 'etc', name);
    // An image may have a link there that leads out of its own files.
    await rm(path, { force: true, recursive: true });
    await writeFile(path, text);
  }
  for (const directory of ['proc', 'sys', 'dev']) await mkdir(join(rootfs, directory), { recursive: true });
}

function readOrEmpty(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if (isMissing(error)) return '';
    throw error;
  }
}
