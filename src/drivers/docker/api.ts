import { existsSync } from 'node:fs';
import { PassThrough } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { UmsError } from '#src/telemetry/errors.ts';
import { Agent, request } from 'undici';
import { z } from 'zod';
import { type Answerer, messageIn, parseAnswer, readText, required } from '../oci/answers.ts';
import {
  type Image,
  imageSchema,
  infoSchema,
  type Inspect,
  inspectSchema,
  listedSchema,
  type Volume,
  volumeSchema,
} from './schema.ts';

/** Docker's HTTP interface on its socket, typed. Docker is asked every time; nothing is remembered here. */
const SOCKET = '/var/run/docker.sock';
/** Docker 24; daemons speak older versions than their own. */
const VERSION = '/v1.43';
const QUERY_LIMIT_MS = 30_000;
/** Milliseconds for what changes something: stopping waits for the service, creating a volume for its driver. */
const CHANGE_LIMIT_MS = 120_000;
/** Loading and saving an image are as long as its bytes take; so long nothing may arrive. */
const IDLE_LIMIT_MS = 120_000;

const dispatcher = new Agent({ connect: { socketPath: SOCKET }, connections: 16, pipelining: 1 });
const loadedSchema = z.object({ error: z.string().optional(), stream: z.string().optional() });

interface Call {
  method?: 'GET' | 'POST' | 'DELETE';
  body?: unknown;
  limit_ms?: number;
  /** Of the interface, where more is needed than this driver needs. */
  version?: string;
  /** Answers of this status are no failures; the result is undefined then. */
  absent?: readonly number[];
}

/** Docker answered with an error; `status` is HTTP's. */
export class DockerRefusal extends UmsError {
  readonly status: number;

  constructor(status: number, path: string, message: string) {
    super('UMS_E_ENGINE', { message: `Docker refused: ${message}`, fault: 'ums', detail: `${path}: ${status}` });
    this.status = status;
  }
}

export function isInstalled(): boolean {
  return existsSync(SOCKET);
}

export async function call<T>(path: string, schema: z.ZodType<T>, options: Call = {}): Promise<T | undefined> {
  const { method = 'GET', body, limit_ms = QUERY_LIMIT_MS, absent = [], version = VERSION } = options;
  const answer = await reach(path, method, () =>
    request(`http://docker${version}${path}`, {
      dispatcher,
      method,
      headersTimeout: limit_ms,
      bodyTimeout: limit_ms,
      ...(body === undefined ? {} : { body: JSON.stringify(body), headers: { 'content-type': 'application/json' } }),
    }),
  );
  const text = await readText(answer.body, path, ANSWERER.name);
  if (absent.includes(answer.statusCode)) return undefined;
  if (answer.statusCode >= 400) throw refusal(answer.statusCode, path, text);
  return parse(schema, text === '' ? 'null' : text, path);
}

async function reach<T>(path: string, method: string, ask: () => Promise<T>): Promise<T> {
  try {
    return await ask();
  } catch (error) {
    throw new UmsError('UMS_E_ENGINE', {
      message: `Docker does not answer at ${SOCKET}: ${error instanceof Error ? error.message : String(error)}`,
      fault: 'ums',
      mend: 'See whether dockerd runs: docker info',
      detail: `${method} ${path}`,
      cause: error,
    });
  }
}

function refusal(status: number, path: string, text: string): DockerRefusal {
  return new DockerRefusal(status, path, messageIn(text));
}

const ANSWERER: Answerer = { name: 'Docker', supported: 'Docker 24 and later are', version: 'docker version' };

function parse<T>(schema: z.ZodType<T>, text: string, path: string): T {
  return parseAnswer(schema, text, path, ANSWERER);
}

const nothing = z.unknown();

export async function info(): Promise<z.infer<typeof infoSchema>> {
  return required(await call('/info', infoSchema));
}

export async function listContainers(): Promise<z.infer<typeof listedSchema>> {
  return required(await call('/containers/json?all=1', listedSchema));
}

/** The container of exactly this id or name. */
export async function inspectContainer(reference: string): Promise<Inspect | undefined> {
  const found = await call(`/containers/${encodeURIComponent(reference)}/json`, inspectSchema, { absent: [404] });
  // Docker takes an id's beginning too; only the whole of either will do here.
  return found !== undefined && (found.Id === reference || found.Name === `/${reference}`) ? found : undefined;
}

/** The container that has this label with this value; of several the newest. */
export async function labelledContainer(label: string, value: string): Promise<Inspect | undefined> {
  const filters = encodeURIComponent(JSON.stringify({ label: [`${label}=${value}`] }));
  const found = required(await call(`/containers/json?all=1&filters=${filters}`, listedSchema));
  const [newest] = found.toSorted((left, right) => right.Created - left.Created);
  return newest === undefined ? undefined : await inspectContainer(newest.Id);
}

export async function createContainer(name: string, body: unknown): Promise<string> {
  const path = `/containers/create?name=${encodeURIComponent(name)}`;
  const made = await call(path, z.object({ Id: z.string() }), { method: 'POST', body, limit_ms: CHANGE_LIMIT_MS });
  return required(made).Id;
}

export async function renameContainer(id: string, name: string): Promise<void> {
  await change(`/containers/${id}/rename?name=${encodeURIComponent(name)}`, 'POST');
}

/** Its anonymous volumes go with it. Absent already is success. */
export async function removeContainer(id: string): Promise<void> {
  await change(`/containers/${id}?force=1&v=1`, 'DELETE', { absent: [404] });
}

export async function forbidRestart(id: string): Promise<void> {
  await change(`/containers/${id}/update`, 'POST', { body: { RestartPolicy: { Name: 'no' } } });
}

/** A 304 says that it is so already. */
export async function startContainer(id: string): Promise<void> {
  await change(`/containers/${id}/start`, 'POST', { absent: [304] });
}

export async function stopContainer(id: string, limit_ms: number): Promise<void> {
  await change(`/containers/${id}/stop`, 'POST', { absent: [304], limit_ms });
}

async function change(path: string, method: 'POST' | 'DELETE', options: Call = {}): Promise<void> {
  await call(path, nothing, { limit_ms: CHANGE_LIMIT_MS, ...options, method });
}

export async function inspectVolume(name: string): Promise<Volume | undefined> {
  return await call(`/volumes/${encodeURIComponent(name)}`, volumeSchema, { absent: [404] });
}

export async function createVolume(name: string, labels: Record<string, string>): Promise<void> {
  await change('/volumes/create', 'POST', { body: { Name: name, Labels: labels } });
}

/** False when a container uses it. */
export async function removeVolume(name: string): Promise<boolean> {
  const gone = await call(
    `/volumes/${encodeURIComponent(name)}`,
    z.unknown().transform(() => true),
    {
      method: 'DELETE',
      limit_ms: CHANGE_LIMIT_MS,
      absent: [409],
    },
  ).catch((error: unknown) => {
    if (error instanceof DockerRefusal && error.status === 404) return true;
    throw error;
  });
  return gone === true;
}

export async function networkExists(name: string): Promise<boolean> {
  return (await call(`/networks/${encodeURIComponent(name)}`, nothing, { absent: [404] })) !== undefined;
}

export async function inspectImage(reference: string): Promise<Image | undefined> {
  return await call(`/images/${encodeURIComponent(reference)}/json`, imageSchema, { absent: [404] });
}

export async function listImages(): Promise<string[]> {
  return required(await call('/images/json?all=1', z.array(z.object({ Id: z.string() })))).map(({ Id }) => Id);
}

export async function tagImage(id: string, name: string): Promise<void> {
  const colon = name.lastIndexOf(':');
  const [repository, tag] =
    colon > name.lastIndexOf('/') ? [name.slice(0, colon), name.slice(colon + 1)] : [name, 'latest'];
  const words = `repo=${encodeURIComponent(repository)}&tag=${encodeURIComponent(tag)}`;
  await change(`/images/${encodeURIComponent(id)}/tag?${words}`, 'POST');
}

/** The image as an archive, uncompressed. */
export async function saveImage(id: string, sink: NodeJS.WritableStream, signal: AbortSignal): Promise<void> {
  const path = `/images/${encodeURIComponent(id)}/get`;
  const answer = await reach(path, 'GET', () =>
    request(`http://docker${VERSION}${path}`, {
      dispatcher,
      signal,
      headersTimeout: IDLE_LIMIT_MS,
      bodyTimeout: IDLE_LIMIT_MS,
    }),
  );
  if (answer.statusCode >= 400) {
    throw refusal(answer.statusCode, path, await readText(answer.body, path, ANSWERER.name));
  }
  await pipeline(answer.body, sink, { signal });
}

export async function loadImage(source: NodeJS.ReadableStream, signal: AbortSignal): Promise<void> {
  const path = '/images/load?quiet=1';
  const body = new PassThrough();
  const fed = feed(source, body);
  // Awaited once Docker has answered; what it says goes before.
  fed.catch(() => undefined);
  const answer = await reach(path, 'POST', () =>
    request(`http://docker${VERSION}${path}`, {
      dispatcher,
      signal,
      method: 'POST',
      body,
      headers: { 'content-type': 'application/x-tar' },
      headersTimeout: 0,
      bodyTimeout: IDLE_LIMIT_MS,
    }),
  );
  const text = await readText(answer.body, path, ANSWERER.name);
  if (answer.statusCode >= 400) throw refusal(answer.statusCode, path, text);
  // What fails while the archive is read is told in a line of the answer, whose status was sent before.
  for (const line of text.split('\n').filter((each) => each.trim() !== '')) {
    const { error } = parse(loadedSchema, line, path);
    if (error !== undefined) throw new DockerRefusal(answer.statusCode, path, error);
  }
  await fed;
}

/** Docker may answer before it has read the padding at an archive's end; whoever sends that must not see it as a failure. */
async function feed(source: NodeJS.ReadableStream, body: PassThrough): Promise<void> {
  // Why it ended, the answer tells.
  body.on('error', () => undefined);
  for await (const chunk of source) {
    if (body.destroyed || body.write(chunk)) continue;
    await new Promise<void>((resolve) => {
      body.once('drain', resolve);
      body.once('close', resolve);
    });
  }
  body.end();
}
