import { existsSync, statSync } from 'node:fs';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { z } from 'zod';
import { run } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { type ImageConfig, imageConfigSchema } from '../images/config.ts';

/**
 * An image → a root file system and what the image says of its program. skopeo reads archives and registries, umoci
 * unpacks layers: both are Debian's, and both know the many corners of their formats.
 */
const UNPACK_LIMIT_MS = 1_800_000;
const QUERY_LIMIT_MS = 120_000;
const configSchema = z.object({ config: imageConfigSchema.nullish() });

export interface PullOptions {
  /** A registry without TLS, or with a certificate that nobody vouches for. */
  insecure: boolean;
}

/** `image` is an archive, a directory with an OCI layout, or a reference to a registry. */
export async function unpackImage(image: string, rootfs: string, options: PullOptions): Promise<ImageConfig> {
  const source = await sourceOf(image);
  const work = await mkdtemp(join(tmpdir(), 'ums-image-'));
  const tls = source.startsWith('docker://') && options.insecure;
  try {
    const copy = ['copy', '--quiet', ...(tls ? ['--src-tls-verify=false'] : []), source, `oci:${work}/layout:image`];
    await skopeo(copy, image, UNPACK_LIMIT_MS);
    const inspect = ['inspect', '--config', '--raw', ...(tls ? ['--tls-verify=false'] : []), source];
    const { config } = configSchema.parse(JSON.parse(await skopeo(inspect, image, QUERY_LIMIT_MS)));
    await run('umoci', ['raw', 'unpack', '--image', `${work}/layout:image`, rootfs], { timeout_ms: UNPACK_LIMIT_MS });
    return config ?? {};
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

async function skopeo(args: readonly string[], image: string, timeout_ms: number): Promise<string> {
  try {
    // Whose signature an image must carry is for the platform to say, which has let the capsule see it.
    const { stdout } = await run('skopeo', ['--insecure-policy', ...args], { timeout_ms });
    return stdout;
  } catch (error) {
    throw new UmsError('UMS_E_SPECIFICATION', {
      message: `The image ${image} cannot be read: ${error instanceof Error ? error.message : String(error)}`,
      fault: 'user',
      state: 'The service was not started.',
      mend: 'Give an archive of docker save or podman save, a directory with an OCI layout, or a name in a registry.',
      cause: error,
    });
  }
}

async function sourceOf(image: string): Promise<string> {
  if (!existsSync(image)) return `docker://${image.replace(/^docker:\/\//, '')}`;
  if (statSync(image).isDirectory()) return `oci:${image}`;
  const { stdout } = await run('tar', ['--list', '--file', image], { timeout_ms: QUERY_LIMIT_MS });
  const names = new Set(stdout.split('\n').map((name) => name.replace(/^\.\//, '')));
  if (names.has('manifest.json')) return `docker-archive:${image}`;
  if (names.has('oci-layout')) return `oci-archive:${image}`;
  throw new UmsError('UMS_E_SPECIFICATION', {
    message: `${image} is no archive of an image: it has neither manifest.json nor oci-layout`,
    fault: 'user',
    state: 'The service was not started.',
    mend: 'Make it with docker save or podman save. An archive of files is given with --rootfs.',
  });
}

/** A directory, or a tar of one, as the root file system. */
export async function copyRootfs(from: string, rootfs: string): Promise<void> {
  if (!existsSync(from)) {
    throw new UmsError('UMS_E_USAGE', {
      message: `There is no ${from} in the capsule`,
      fault: 'user',
      state: 'The service was not started.',
      mend: 'Mount it into the capsule, and give its path there.',
    });
  }
  await mkdir(rootfs, { recursive: true });
  const options = { timeout_ms: UNPACK_LIMIT_MS };
  if (statSync(from).isDirectory()) await run('cp', ['--archive', '--reflink=auto', `${from}/.`, rootfs], options);
  else await run('tar', ['--extract', '--numeric-owner', '--same-permissions', '-C', rootfs, '-f', from], options);
}
