import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { copyFile, link, mkdir, mkdtemp, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { z } from 'zod';
import { UmsError } from '#src/telemetry/errors.ts';
import { run } from '#src/telemetry/exec.ts';

/**
 * Archives of images as `docker save` and `podman save` write them and Docker, Podman and containerd load them: a tar with
 * manifest.json, the image's configuration, and a tar for each layer. Layers are not compressed, so that the digest of
 * their content is the digest of the file.
 */
const CONFIG_BYTES_MAX = 8 * 1024 * 1024;
const TAR_LIMIT_MS = 900_000;

const word = z.string().max(131_072);
const words = z.array(word).max(4096);

/** What an image says of the containers made of it. Other fields are kept as they are. */
export const containerConfigSchema = z.looseObject({
  Entrypoint: words.nullish(),
  Cmd: words.nullish(),
  Env: words.nullish(),
  User: word.nullish(),
  WorkingDir: word.nullish(),
  Volumes: z.record(word, z.unknown()).nullish(),
  ExposedPorts: z.record(word, z.unknown()).nullish(),
  StopSignal: word.nullish(),
});
export type ContainerConfig = z.infer<typeof containerConfigSchema>;

export const imageConfigSchema = z.looseObject({
  architecture: z.string().max(64),
  os: z.string().max(64),
  config: containerConfigSchema.default({}),
  rootfs: z.looseObject({ type: z.literal('layers'), diff_ids: z.array(z.string().max(128)).max(1024) }),
  history: z.array(z.looseObject({})).max(4096).optional(),
});
export type ImageConfig = z.infer<typeof imageConfigSchema>;

const manifestSchema = z
  .array(
    z.looseObject({
      Config: z.string().max(4096),
      RepoTags: z.array(z.string().max(4096)).max(256).nullish(),
      Layers: z.array(z.string().max(4096)).max(1024),
    }),
  )
  .length(1);

/** An image as files: its configuration, and its layers from the lowest to the highest. */
export interface ImageParts {
  names: readonly string[];
  config: ImageConfig;
  /** Paths of uncompressed tars, one for each of `config.rootfs.diff_ids`. */
  layers: readonly string[];
}

/** Takes an archive apart in an empty directory. Every path that it names stays in there. */
export async function unpackArchive(archive: string, directory: string): Promise<ImageParts> {
  await run('tar', ['--extract', '--no-same-owner', `--file=${archive}`, `--directory=${directory}`], {
    timeout_ms: TAR_LIMIT_MS,
  }).catch((error: unknown) => {
    throw unusable(archive, 'tar cannot read it', error);
  });
  const manifest = manifestSchema.safeParse(await readJson(archive, join(directory, 'manifest.json')));
  const image = manifest.data?.[0];
  if (image === undefined) throw unusable(archive, 'it has no manifest.json with exactly one image');
  const config = imageConfigSchema.safeParse(await readJson(archive, inside(archive, directory, image.Config)));
  if (!config.success) throw unusable(archive, 'its configuration cannot be read', config.error);
  const layers = image.Layers.map((layer) => inside(archive, directory, layer));
  if (layers.length !== config.data.rootfs.diff_ids.length) throw unusable(archive, 'layers are missing from it');
  return { names: image.RepoTags ?? [], config: config.data, layers };
}

/** Writes an archive, complete or not at all. */
export async function packArchive(image: ImageParts, target: string): Promise<void> {
  await mkdir(dirname(target), { recursive: true });
  const directory = await mkdtemp(join(dirname(target), '.ums-archive-'));
  try {
    const config = Buffer.from(JSON.stringify(image.config));
    const configName = `${createHash('sha256').update(config).digest('hex')}.json`;
    await writeFile(join(directory, configName), config);
    const layers = image.config.rootfs.diff_ids.map((id) => `${id.replace(/^sha256:/, '')}.tar`);
    for (const [at, layer] of image.layers.entries()) {
      const name = layers[at];
      if (name !== undefined && (await stat(join(directory, name)).catch(() => undefined)) === undefined)
        await linkOrCopy(layer, join(directory, name));
    }
    const manifest = [{ Config: configName, RepoTags: image.names, Layers: layers }];
    await writeFile(join(directory, 'manifest.json'), JSON.stringify(manifest));
    const members = [...new Set(['manifest.json', configName, ...layers])];
    // Dates and owners are not the image's, so the same image is the same archive to the byte.
    const same = ['--mtime=@0', '--owner=0', '--group=0', '--numeric-owner', '--mode=0644', '--format=posix'];
    const plain = '--pax-option=delete=atime,delete=ctime,exthdr.name=%d/PaxHeaders/%f';
    const written = join(directory, 'archive');
    const args = ['--create', `--file=${written}`, ...same, plain, `--directory=${directory}`, ...members];
    await run('tar', args, { timeout_ms: TAR_LIMIT_MS });
    await rename(written, target);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** The digest by which a layer is known: that of its uncompressed tar. */
export async function diffId(layer: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(layer, { highWaterMark: 1 << 20 }), hash);
  return `sha256:${hash.digest('hex')}`;
}

/** The same image with one more layer on top. */
export async function withLayer(image: ImageParts, layer: string, how: string): Promise<ImageParts> {
  const { rootfs, history } = image.config;
  return {
    ...image,
    config: {
      ...image.config,
      rootfs: { ...rootfs, diff_ids: [...rootfs.diff_ids, await diffId(layer)] },
      ...(history === undefined ? {} : { history: [...history, { created_by: how }] }),
    },
    layers: [...image.layers, layer],
  };
}

async function linkOrCopy(from: string, to: string): Promise<void> {
  // Another file system, or one that knows no links.
  await link(from, to).catch(() => copyFile(from, to));
}

async function readJson(archive: string, path: string): Promise<unknown> {
  const info = await stat(path).catch(() => undefined);
  if (info === undefined) throw unusable(archive, 'it is not an archive of an image');
  if (info.size > CONFIG_BYTES_MAX) throw unusable(archive, 'its description is larger than an image needs');
  try {
    return JSON.parse(await readFile(path, 'utf8'));
  } catch (error) {
    throw unusable(archive, 'its description is no JSON', error);
  }
}

function inside(archive: string, directory: string, name: string): string {
  if (name.startsWith('/') || name.split('/').includes('..')) throw unusable(archive, `it names ${name}`);
  return join(directory, name);
}

function unusable(archive: string, why: string, cause?: unknown): UmsError {
  return new UmsError('UMS_E_USAGE', {
    message: `${archive} cannot be used: ${why}.`,
    fault: 'user',
    state: 'Nothing was written.',
    mend: 'Make it with docker save, or with podman save --format docker-archive.',
    ...(cause === undefined ? {} : { cause }),
  });
}
