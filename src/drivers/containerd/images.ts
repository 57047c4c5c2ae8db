import { createHash } from 'node:crypto';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { pipeline } from 'node:stream/promises';
import { UmsError } from '#src/telemetry/errors.ts';
import type { z } from 'zod';
import { requireProgram } from '../oci/runtime.ts';
import type { Specification } from '../specification.ts';
import type { ContainerdClient } from './client.ts';
import { type Container, type Image, imageConfigSchema, indexSchema, manifestSchema } from './schema.ts';
import { tarEnd, tarHeader, tarPadding } from './tar.ts';

/** Images that are looked at; beyond it some layers may travel although they are there. */
const IMAGES_LIMIT = 500;
const KNOWN_MAX = 1000;
const STDERR_LIMIT = 64 * 1024;
/** A layer is as long as its bytes take. */
const LAYER_LIMIT_MS = 3_600_000;
const UNPACK_LIMIT_MS = 600_000;
const ARCHITECTURES: Record<string, string> = { x64: 'amd64', arm64: 'arm64' };

type Blob = z.infer<typeof manifestSchema>['config'];

/** What an image is on this platform. */
interface Contents {
  manifest: Blob;
  config: Blob;
  layers: Blob[];
  /** The snapshot that all layers together are, by the image specification's ChainID. */
  chain: string;
}

/** An image's blobs cannot change under their digest. */
const known = new Map<string, Contents>();

/** Undefined for what is no whole image of this platform. */
async function contentsOf(client: ContainerdClient, { target }: Image): Promise<Contents | undefined> {
  const remembered = known.get(target.digest);
  if (remembered !== undefined) return remembered;
  const manifest = await manifestOf(client, { mediaType: target.media_type, digest: target.digest, size: target.size });
  const found = manifest === undefined ? undefined : await read(client, manifest, manifestSchema);
  const config = found === undefined ? undefined : await read(client, found.config, imageConfigSchema);
  if (manifest === undefined || found === undefined || config === undefined) return undefined;
  const contents = { manifest, config: found.config, layers: found.layers, chain: chainOf(config.rootfs.diff_ids) };
  if (known.size >= KNOWN_MAX) known.clear();
  known.set(target.digest, contents);
  return contents;
}

async function manifestOf(client: ContainerdClient, target: Blob): Promise<Blob | undefined> {
  if (!/index|manifest\.list/.test(target.mediaType)) return target;
  const index = await read(client, target, indexSchema);
  const wanted = ARCHITECTURES[process.arch] ?? process.arch;
  return index?.manifests.find(({ platform }) => platform?.os === 'linux' && platform.architecture === wanted);
}

async function read<T>(client: ContainerdClient, { digest }: Blob, schema: z.ZodType<T>): Promise<T | undefined> {
  const bytes = await client.readBlob(digest);
  if (bytes === undefined) return undefined;
  try {
    return schema.parse(JSON.parse(bytes.toString('utf8')));
  } catch {
    // Something else goes by an image's name, an artifact for instance.
    return undefined;
  }
}

function chainOf(diffIds: readonly string[]): string {
  let chain = '';
  for (const id of diffIds) {
    chain = chain === '' ? id : `sha256:${createHash('sha256').update(`${chain} ${id}`).digest('hex')}`;
  }
  return chain;
}

async function* imagesWhere(
  client: ContainerdClient,
  first: readonly string[],
  fits: (contents: Contents) => boolean,
): AsyncGenerator<{ image: Image; contents: Contents }, void, undefined> {
  const all = await client.images();
  const ordered = [
    ...all.filter(({ name }) => first.includes(name)),
    ...all.filter(({ name }) => !first.includes(name)),
  ];
  for (const image of ordered.slice(0, IMAGES_LIMIT)) {
    const contents = await contentsOf(client, image);
    if (contents !== undefined && fits(contents)) yield { image, contents };
  }
}

/** Names and size of the image a container was made from, by the digest of its configuration. */
export async function describeImage(client: ContainerdClient, container: Container): Promise<Specification['image']> {
  const parent = await client.snapshotParent(container.snapshotter, container.snapshot_key);
  const names: string[] = [];
  let contents: Contents | undefined;
  for await (const found of imagesWhere(client, [container.image], ({ chain }) => chain === parent)) {
    contents ??= found.contents;
    // Two images can have the same layers; a name of the other is none of this one.
    if (found.contents.config.digest === contents.config.digest && !found.image.name.startsWith(MOVED)) {
      names.push(found.image.name);
    }
  }
  if (contents === undefined || parent === undefined || parent === '') {
    throw new UmsError('UMS_E_SPECIFICATION', {
      message: `${container.id} cannot be moved: the image it was made from (${container.image}) is no longer here`,
      fault: 'user',
      state: 'Nothing was changed.',
      mend: `Give it back to containerd: ctr images pull ${container.image}`,
    });
  }
  const size_bytes = contents.layers.reduce((sum, { size }) => sum + size, contents.config.size);
  return { kind: 'image', id: contents.config.digest, names: names.slice(0, 64), size_bytes };
}

/** Images that arrived have this name too, until their own are known to be free. */
const MOVED = 'ums.local/moved@';

export interface LocalImage {
  /** A name by which it goes here. */
  name: string;
  chain: string;
  target: Image['target'];
}

/** The image of that specification, if it is here as a whole. */
export async function localImage(
  client: ContainerdClient,
  { image, containerd }: Specification,
): Promise<LocalImage | undefined> {
  if (image.kind !== 'image') return undefined;
  const first = [containerd?.image ?? '', ...image.names];
  for await (const found of imagesWhere(client, first, ({ config }) => config.digest === image.id)) {
    const { chain, layers } = found.contents;
    const snapshotter = containerd?.snapshotter ?? 'overlayfs';
    const here = { name: found.image.name, chain, target: found.image.target };
    if ((await client.snapshot(snapshotter, chain)) !== undefined) return here;
    const blobs = await Promise.all(layers.map(({ digest }) => client.hasBlob(digest)));
    if (blobs.every(Boolean)) return here;
  }
  return undefined;
}

/** Has the layers of an image that is here become snapshots, if they are not yet. */
export async function unpack(client: ContainerdClient, image: LocalImage, snapshotter: string): Promise<void> {
  if ((await client.snapshot(snapshotter, image.chain)) !== undefined) return;
  await ctr(client, ['snapshots', '--snapshotter', snapshotter, 'unpack', image.target.digest], {
    limit: AbortSignal.timeout(UNPACK_LIMIT_MS),
  });
}

/** Digests of the layers here, as they were packed. */
export async function imageLayers(client: ContainerdClient): Promise<string[]> {
  const digests = new Set<string>();
  for await (const { contents } of imagesWhere(client, [], () => true)) {
    for (const { digest } of contents.layers) digests.add(digest);
  }
  const here: string[] = [];
  for (const digest of digests) if (await client.hasBlob(digest)) here.push(digest);
  return here;
}

/**
 * An archive in the form of an OCI image layout, read from containerd's store blob by blob: layers that the destination
 * knows are not even read. It names the image by its digest alone, so that importing it can take no name from another.
 */
export async function exportImage(
  client: ContainerdClient,
  specification: Specification,
  sink: NodeJS.WritableStream,
  signal: AbortSignal,
  kept: readonly string[],
): Promise<void> {
  const { image, name } = specification;
  if (image.kind !== 'image') return;
  const first = [specification.containerd?.image ?? '', ...image.names];
  const found = await imagesWhere(client, first, ({ config }) => config.digest === image.id).next();
  if (found.done === true) throw notHere(name, image.id);
  const { contents } = found.value;
  await pipeline(() => archive(client, contents, new Set(kept), signal), sink, { signal });
}

async function* archive(
  client: ContainerdClient,
  { manifest, config, layers }: Contents,
  kept: ReadonlySet<string>,
  signal: AbortSignal,
): AsyncGenerator<Buffer, void, undefined> {
  const annotations = { 'io.containerd.image.name': `${MOVED}${config.digest}` };
  const platform = { architecture: ARCHITECTURES[process.arch] ?? process.arch, os: 'linux' };
  const mediaType = manifest.mediaType === '' ? 'application/vnd.oci.image.manifest.v1+json' : manifest.mediaType;
  const entry = { mediaType, digest: manifest.digest, size: manifest.size, platform, annotations };
  yield* file('oci-layout', JSON.stringify({ imageLayoutVersion: '1.0.0' }));
  yield* file('index.json', JSON.stringify({ schemaVersion: 2, manifests: [entry] }));
  const wanted = new Map(
    [manifest, config, ...layers.filter(({ digest }) => !kept.has(digest))].map((each) => [each.digest, each]),
  );
  for (const { digest, size } of wanted.values()) {
    yield tarHeader(`blobs/sha256/${digest.slice('sha256:'.length)}`, size);
    let sent = 0;
    for await (const chunk of client.streamBlob(digest, signal, LAYER_LIMIT_MS)) {
      sent += chunk.length;
      yield chunk;
    }
    if (sent !== size) throw incomplete(digest, sent, size);
    yield tarPadding(size);
  }
  yield tarEnd();
}

function* file(name: string, text: string): Generator<Buffer, void, undefined> {
  const bytes = Buffer.from(text, 'utf8');
  yield tarHeader(name, bytes.length);
  yield bytes;
  yield tarPadding(bytes.length);
}

export async function importImage(
  client: ContainerdClient,
  specification: Specification,
  source: NodeJS.ReadableStream,
  signal: AbortSignal,
): Promise<void> {
  const { image, containerd } = specification;
  if (image.kind !== 'image') return;
  const snapshotter = containerd?.snapshotter ?? 'overlayfs';
  await ctr(client, ['images', 'import', '--local', '--snapshotter', snapshotter, '-'], { source, limit: signal });
  const moved = await client.image(`${MOVED}${image.id}`);
  const contents = moved === undefined ? undefined : await contentsOf(client, moved);
  if (moved === undefined || contents?.config.digest !== image.id) {
    throw new UmsError('UMS_E_IMAGE_CORRUPT', {
      message: `The image that arrived is not the one that was announced (${image.id.slice(7, 19)})`,
      fault: 'source',
      mend: 'Run the migration again; if it happens again, move the image with ctr images export and import.',
    });
  }
  let named = 0;
  for (const name of image.names) {
    // A name that already means another image here is left to it.
    if (await client.createImage({ name, labels: moved.labels, target: moved.target })) named += 1;
    else if ((await client.image(name))?.target.digest === moved.target.digest) named += 1;
  }
  if (named > 0) await client.deleteImage(moved.name);
}

interface Piped {
  source?: NodeJS.ReadableStream;
  limit: AbortSignal;
}

/** `ctr` unpacks what it imports, which the interface leaves to its clients. */
async function ctr(client: ContainerdClient, args: readonly string[], { source, limit }: Piped): Promise<void> {
  const words = ['--address', client.address, '--namespace', client.namespace, ...args];
  const child = spawn(await requireProgram('ctr'), words, { stdio: ['pipe', 'ignore', 'pipe'], signal: limit });
  let stderr = '';
  child.stderr.setEncoding('utf8');
  child.stderr.on('data', (text: string) => {
    stderr = (stderr + text).slice(-STDERR_LIMIT);
  });
  const flow = source === undefined ? Promise.resolve(void child.stdin.end()) : pipeline(source, child.stdin);
  const [exit, fed] = await Promise.allSettled([once(child, 'close'), flow]);
  limit.throwIfAborted();
  if (exit.status === 'fulfilled' && child.exitCode === 0) {
    if (fed.status === 'rejected') throw fed.reason;
    return;
  }
  throw new UmsError('UMS_E_ENGINE', {
    message: `ctr ${args[0] ?? ''} failed: ${stderr.trim().split('\n').at(-1) ?? 'no reason given'}`,
    fault: 'ums',
    detail: stderr.slice(-4000),
    ...(exit.status === 'rejected' ? { cause: exit.reason } : {}),
  });
}

function notHere(name: string, id: string): UmsError {
  return new UmsError('UMS_E_ENGINE', {
    message: `The image of ${name} is no longer here (${id.slice(7, 19)})`,
    fault: 'source',
    mend: 'Give the image back to containerd (ctr images pull, ctr images import) and try again.',
  });
}

function incomplete(digest: string, sent: number, size: number): UmsError {
  return new UmsError('UMS_E_ENGINE', {
    message: `containerd gave ${sent} of ${size} bytes of ${digest.slice(0, 19)}`,
    fault: 'source',
  });
}
