import { spawn } from 'node:child_process';
import { pipeline } from 'node:stream/promises';
import { run } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { z } from 'zod';
import { type Image, imagesOf, type Specification } from '../specification.ts';

/** Images as the kubelet's containerd keeps them: by name, and by the digest of what the name leads to. */
const NAMESPACE = 'k8s.io';
const QUERY_LIMIT_MS = 30_000;
/** Characters of a command's complaint that are kept. */
const STDERR_LIMIT = 16_384;
const LISTED = /^(\S+)\s+\S+\s+(sha256:[0-9a-f]{64})\s+([\d.]+)\s*([KMGT]?i?B)\s/;
const UNITS: Record<string, number> = { B: 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 };

interface Listed {
  name: string;
  digest: string;
  size_bytes: number;
}

export function parseImages(text: string): Listed[] {
  return text.split('\n').flatMap((line) => {
    const [, name = '', digest = '', number = '', unit = ''] = LISTED.exec(line) ?? [];
    return name === '' ? [] : [{ name, digest, size_bytes: Math.ceil(Number(number) * (UNITS[unit] ?? 1)) }];
  });
}

async function ctr(...args: string[]): Promise<string> {
  return (await run('ctr', ['--namespace', NAMESPACE, ...args], { timeout_ms: QUERY_LIMIT_MS })).stdout;
}

async function listImages(): Promise<Listed[]> {
  return parseImages(await ctr('images', 'ls'));
}

/** The kubelet shortens no names, and people do: `redis` is `docker.io/library/redis:latest`. */
export function fullName(name: string): string {
  const [, path = name, end = ''] = /^(.*?)(@sha256:.*|:[^:/]+)?$/.exec(name) ?? [];
  const [first = '', ...rest] = path.split('/');
  const hasHost = rest.length > 0 && (/[.:]/.test(first) || first === 'localhost');
  const located = hasHost ? path : rest.length === 0 ? `docker.io/library/${path}` : `docker.io/${path}`;
  return `${located}${end === '' ? ':latest' : end}`;
}

/** The images that a pod's containers were made from, each once, by the names that the pod has for them. */
export async function describeImages([name, ...more]: readonly [string, ...string[]]): Promise<[Image, ...Image[]]> {
  const here = await listImages();
  const first = await described(here, fullName(name));
  const others = new Set(more.map(fullName));
  others.delete(fullName(name));
  return [first, ...(await Promise.all([...others].map((one) => described(here, one))))];
}

async function described(here: readonly Listed[], wanted: string): Promise<Image> {
  const found = here.find((image) => image.name === wanted);
  if (found !== undefined) {
    const configuration = await configurationOf(found.digest);
    const known = configuration === undefined ? {} : { configuration };
    return { kind: 'image', id: found.digest, names: [wanted], size_bytes: found.size_bytes, ...known };
  }
  throw new UmsError('UMS_E_ENGINE', {
    message: `containerd has no image ${wanted} any more`,
    fault: 'source',
    mend: `Give it back to the node: ctr --namespace ${NAMESPACE} images pull ${wanted}`,
  });
}

const manifestSchema = z.object({
  config: z.object({ digest: z.string().regex(/^sha256:[0-9a-f]{64}$/) }).optional(),
});

/** By which other engines know the image. An index of several platforms has none of its own. */
async function configurationOf(digest: string): Promise<string | undefined> {
  return manifestSchema.parse(JSON.parse(await ctr('content', 'get', digest))).config?.digest;
}

/** Pods name their image, so having it under another name will not do. */
export async function hasImage(specification: Specification): Promise<boolean> {
  const here = await listImages();
  return imagesOf(specification).every(
    (image) =>
      image.kind === 'image' &&
      image.names.every((name) => here.some((each) => each.name === name && each.digest === image.id)),
  );
}

/** A name of the image that means another one here. */
export async function takenName(specification: Specification): Promise<string | undefined> {
  const here = await listImages();
  for (const image of imagesOf(specification)) {
    if (image.kind !== 'image') continue;
    const taken = image.names.find((name) => here.some((each) => each.name === name && each.digest !== image.id));
    if (taken !== undefined) return taken;
  }
  return undefined;
}

export async function exportImage(
  specification: Specification,
  sink: NodeJS.WritableStream,
  signal: AbortSignal,
): Promise<void> {
  if (specification.image.kind !== 'image') return;
  const names = imagesOf(specification).flatMap((image) => (image.kind === 'image' ? image.names : []));
  if (names.length === 0) throw new Error(`the image of ${specification.name} has no name`);
  const platform = `linux/${process.arch === 'x64' ? 'amd64' : process.arch}`;
  await piped(['images', 'export', '--platform', platform, '-', ...names], { sink }, signal);
}

export async function importImage(
  specification: Specification,
  source: NodeJS.ReadableStream,
  signal: AbortSignal,
): Promise<void> {
  const { image } = specification;
  if (image.kind !== 'image') return;
  await piped(['images', 'import', '-'], { source }, signal);
  if (await hasImage(specification)) return;
  throw new UmsError('UMS_E_IMAGE_CORRUPT', {
    message: `The image that arrived is not the one that was announced (${image.id.slice(7, 19)})`,
    fault: 'source',
    mend: 'Run the migration again; if it happens again, move the image with ctr images export and import.',
  });
}

async function piped(
  args: readonly string[],
  ends: { sink?: NodeJS.WritableStream; source?: NodeJS.ReadableStream },
  signal: AbortSignal,
): Promise<void> {
  const child = spawn('ctr', ['--namespace', NAMESPACE, ...args], { stdio: ['pipe', 'pipe', 'pipe'], signal });
  let stderr = '';
  child.stderr.setEncoding('utf8');
  child.stderr.on('data', (text: string) => {
    stderr = (stderr + text).slice(-STDERR_LIMIT);
  });
  const code = new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (exitCode) => resolve(exitCode));
  });
  // A broken pipe only says that ctr ended, and its exit code says why.
  const input = ends.source === undefined ? undefined : pipeline(ends.source, child.stdin, { signal });
  if (ends.source === undefined) child.stdin.end();
  const output = ends.sink === undefined ? undefined : pipeline(child.stdout, ends.sink, { signal });
  if (ends.sink === undefined) child.stdout.resume();
  const [ended, ...streams] = await Promise.allSettled([code, input, output]);
  if (ended.status === 'rejected') throw ended.reason;
  if (ended.value !== 0) {
    const line = stderr.trim().split('\n').at(-1) ?? '';
    throw new UmsError('UMS_E_ENGINE', {
      message: `containerd could not ${args[1] ?? ''} the image${line === '' ? '' : `: ${line}`}`,
      fault: 'ums',
      detail: stderr.slice(-4000),
    });
  }
  for (const stream of streams) if (stream.status === 'rejected') throw stream.reason;
}
