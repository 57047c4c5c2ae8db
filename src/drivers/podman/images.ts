import { spawn } from 'node:child_process';
import { pipeline } from 'node:stream/promises';
import { UmsError } from '#src/telemetry/errors.ts';
import type { Specification } from '../specification.ts';
import { change, inspectImage } from './cli.ts';
import { LayerFilter } from '../oci/layer-filter.ts';

/** Characters of a command's complaint that are kept. */
const STDERR_LIMIT = 16_384;
const OCI_MANIFEST = 'application/vnd.oci.image.manifest.v1+json';

function plainId(id: string): string {
  return id.replace(/^sha256:/, '');
}

export async function hasImage(specification: Specification): Promise<boolean> {
  if (specification.image.kind !== 'image') return false;
  return (await inspectImage(plainId(specification.image.id))) !== undefined;
}

/** A name by which the image goes here, or its id where a name is missing or means another image. */
export async function imageReference(specification: Specification): Promise<string> {
  if (specification.image.kind !== 'image') {
    throw new UmsError('UMS_E_SPECIFICATION', {
      message: `${specification.name} has no image, and Podman makes containers from images`,
      fault: 'user',
    });
  }
  const id = plainId(specification.image.id);
  for (const name of specification.image.names) {
    const here = await inspectImage(name);
    if (here !== undefined && plainId(here.Id) === id) return name;
  }
  return id;
}

export async function exportImage(
  specification: Specification,
  sink: NodeJS.WritableStream,
  signal: AbortSignal,
  known: readonly string[] = [],
): Promise<void> {
  if (specification.image.kind !== 'image') return;
  const id = plainId(specification.image.id);
  const image = await inspectImage(id);
  if (image === undefined) {
    throw new UmsError('UMS_E_ENGINE', {
      message: `The image of ${specification.name} is no longer here (${id.slice(0, 12)})`,
      fault: 'source',
      mend: 'Give the image back to Podman (podman pull, podman load) and try again.',
    });
  }
  // Converting between formats would change the configuration's digest, by which the destination knows the image.
  if (image.ManifestType !== OCI_MANIFEST) {
    await piped(['save', '--quiet', '--format', 'docker-archive', id], { sink }, signal);
    return;
  }
  // Uncompressed, a layer is named by the digest of its content, by which every Podman knows it.
  const filter = new LayerFilter(known);
  const filtered = pipeline(filter, sink, { signal });
  const save = ['save', '--quiet', '--format', 'oci-archive', '--uncompressed', id];
  const ends = await Promise.allSettled([piped(save, { sink: filter }, signal), filtered]);
  for (const end of ends) if (end.status === 'rejected') throw end.reason;
}

export async function importImage(
  specification: Specification,
  source: NodeJS.ReadableStream,
  signal: AbortSignal,
): Promise<void> {
  if (specification.image.kind !== 'image') return;
  await piped(['load', '--quiet'], { source }, signal);
  const id = plainId(specification.image.id);
  if ((await inspectImage(id)) === undefined) {
    throw new UmsError('UMS_E_IMAGE_CORRUPT', {
      message: `The image that arrived is not the one that was announced (${id.slice(0, 12)})`,
      fault: 'source',
      mend: 'Run the migration again; if it happens again, move the image with podman save and podman load.',
    });
  }
  for (const name of specification.image.names) {
    // A name that already means another image here is left to it.
    if ((await inspectImage(name)) === undefined) await change(['tag', id, name]);
  }
}

interface Ends {
  sink?: NodeJS.WritableStream;
  source?: NodeJS.ReadableStream;
}

async function piped(args: string[], ends: Ends, signal: AbortSignal): Promise<void> {
  const child = spawn('podman', args, { stdio: ['pipe', 'pipe', 'pipe'], signal });
  let stderr = '';
  child.stderr.setEncoding('utf8');
  child.stderr.on('data', (text: string) => {
    stderr = (stderr + text).slice(-STDERR_LIMIT);
  });
  const ended = new Promise<number>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => resolve(code ?? 255));
  });
  const flow: Promise<void>[] = [];
  if (ends.source === undefined) child.stdin.end();
  else flow.push(pipeline(ends.source, child.stdin, { signal }));
  if (ends.sink === undefined) child.stdout.resume();
  else flow.push(pipeline(child.stdout, ends.sink, { signal }));
  const [exit, ...flows] = await Promise.allSettled([ended, ...flow]);
  signal.throwIfAborted();
  if (exit.status === 'fulfilled' && exit.value === 0) {
    for (const each of flows) if (each.status === 'rejected') throw each.reason;
    return;
  }
  const lines = stderr.trim().split('\n');
  throw new UmsError('UMS_E_ENGINE', {
    message: `podman ${args[0] ?? ''} failed: ${lines.at(-1) ?? 'no reason given'}`,
    fault: 'ums',
    detail: stderr,
    ...(exit.status === 'rejected' ? { cause: exit.reason } : {}),
  });
}

/** Names and size of a container's image, for its specification. */
export async function describeImage(id: string, imageName: string): Promise<Specification['image']> {
  const image = await inspectImage(id);
  const names = new Set([
    ...(imageName === '' || imageName.startsWith(id) ? [] : [imageName]),
    ...(image?.RepoTags ?? []),
  ]);
  return {
    kind: 'image',
    id: `sha256:${plainId(id)}`,
    names: [...names].slice(0, 64),
    size_bytes: image?.Size ?? 0,
  };
}
