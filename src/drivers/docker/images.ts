import { createHash } from 'node:crypto';
import { pipeline } from 'node:stream/promises';
import { UmsError } from '#src/telemetry/errors.ts';
import { LayerFilter } from '../oci/layer-filter.ts';
import type { Specification } from '../specification.ts';
import { inspectImage, listImages, loadImage, saveImage, tagImage } from './api.ts';
import type { Inspect } from './schema.ts';

/** Their layers are asked for; beyond it some may travel although they are there. */
const IMAGES_LIMIT = 500;
/** Asked about at the same time. */
const AT_ONCE = 8;

export async function hasImage({ image }: Specification): Promise<boolean> {
  return image.kind === 'image' && (await inspectImage(image.id)) !== undefined;
}

/** A name by which the image goes here, or its id where a name is missing or means another image. */
export async function imageReference({ name: service, image }: Specification): Promise<string> {
  if (image.kind !== 'image') {
    throw new UmsError('UMS_E_SPECIFICATION', {
      message: `${service} has no image, and Docker makes containers from images`,
      fault: 'user',
    });
  }
  for (const name of image.names) {
    if ((await inspectImage(name))?.Id === image.id) return name;
  }
  return image.id;
}

/** Docker names each layer in the archive by the digest of its content, so what the destination has can be left out. */
export async function exportImage(
  { name, image }: Specification,
  sink: NodeJS.WritableStream,
  signal: AbortSignal,
  known: readonly string[] = [],
): Promise<void> {
  if (image.kind !== 'image') return;
  const here = await inspectImage(image.id);
  if (here === undefined) {
    throw new UmsError('UMS_E_ENGINE', {
      message: `The image of ${name} is no longer here (${image.id.slice(7, 19)})`,
      fault: 'source',
      mend: 'Give the image back to Docker (docker pull, docker load) and try again.',
    });
  }
  const layers = here.RootFS.Layers;
  const chains = chainsOf(layers);
  const filter = new LayerFilter(layers.filter((_, at) => known.includes(chains[at] ?? '')));
  const ends = await Promise.allSettled([saveImage(image.id, filter, signal), pipeline(filter, sink, { signal })]);
  for (const end of ends) if (end.status === 'rejected') throw end.reason;
}

export async function importImage(
  { image }: Specification,
  source: NodeJS.ReadableStream,
  signal: AbortSignal,
): Promise<void> {
  if (image.kind !== 'image') return;
  await loadImage(source, signal);
  if ((await inspectImage(image.id)) === undefined) {
    throw new UmsError('UMS_E_IMAGE_CORRUPT', {
      message: `The image that arrived is not the one that was announced (${image.id.slice(7, 19)})`,
      fault: 'source',
      mend: 'Run the migration again; if it happens again, move the image with docker save and docker load.',
    });
  }
  for (const name of image.names) {
    // A name that already means another image here is left to it.
    if ((await inspectImage(name)) === undefined) await tagImage(image.id, name);
  }
}

/**
 * Docker knows a layer by all that lies beneath it (the image specification's ChainID), and looks for it in the archive
 * when it has the same content on top of something else.
 */
function chainsOf(layers: readonly string[]): string[] {
  const chains: string[] = [];
  for (const layer of layers) {
    const below = chains.at(-1);
    chains.push(
      below === undefined ? layer : `sha256:${createHash('sha256').update(`${below} ${layer}`).digest('hex')}`,
    );
  }
  return chains;
}

/** The chains of all layers here. */
export async function imageLayers(): Promise<string[]> {
  const ids = [...new Set(await listImages())].slice(0, IMAGES_LIMIT);
  const chains = new Set<string>();
  for (let at = 0; at < ids.length; at += AT_ONCE) {
    const images = await Promise.all(ids.slice(at, at + AT_ONCE).map((id) => inspectImage(id)));
    for (const image of images) for (const chain of chainsOf(image?.RootFS.Layers ?? [])) chains.add(chain);
  }
  return [...chains];
}

/** Names and size of a container's image, for its specification. */
export async function describeImage(inspect: Inspect): Promise<Specification['image']> {
  const image = await inspectImage(inspect.Image);
  const name = inspect.Config.Image;
  const names = new Set([
    ...(name === '' || /^(sha256:)?[0-9a-f]{12,64}$/.test(name) ? [] : [name]),
    ...(image?.RepoTags ?? []),
  ]);
  return { kind: 'image', id: inspect.Image, names: [...names].slice(0, 64), size_bytes: image?.Size ?? 0 };
}
