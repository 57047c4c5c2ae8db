import { UmsError } from '#src/telemetry/errors.ts';
import { z } from 'zod';
import { type Answerer, messageIn, parseAnswer, required } from '../oci/answers.ts';
import { type DetachedResult, runDetached } from '../oci/child.ts';
import { findProgram, versionText } from '../oci/runtime.ts';
import { imageSchema, type Inspect, inspectSchema, listedSchema, type Volume, volumeSchema } from './schema.ts';
import { type Answer, call } from './service.ts';

/**
 * Podman, typed: its service is asked, its command changes things. Podman is asked every time; nothing is remembered here.
 */
const QUERY_LIMIT_MS = 30_000;
const ANSWERER: Answerer = { name: 'Podman', supported: 'Podman 5 is', version: 'podman version' };
/** Milliseconds for a command that changes something; the restore has its own. */
export const CHANGE_TIMEOUT_MS = 120_000;
/** Their layers are asked for; beyond it some may travel although they are there. */
const IMAGES_LIMIT = 500;

export function engineError(error: unknown, what: string): unknown {
  if (!(error instanceof UmsError) || error.code !== 'UMS_E_CHILD') return error;
  return new UmsError('UMS_E_ENGINE', {
    message: `Podman could not ${what}: ${error.message}`,
    fault: 'ums',
    ...(error.detail === undefined ? {} : { detail: error.detail }),
    cause: error,
  });
}

/** A question to Podman's service; undefined where Podman has nothing of that name. */
async function look<T>(path: string, schema: z.ZodType<T>): Promise<T | undefined> {
  const answer = await call({ method: 'GET', path, limit_ms: QUERY_LIMIT_MS });
  if (answer.status === 404) return undefined;
  if (answer.status >= 400) throw refusal(`answer ${path}`, answer);
  return parseAnswer(schema, answer.text, path, ANSWERER);
}

function refusal(what: string, { status, text }: Answer): UmsError {
  return new UmsError('UMS_E_ENGINE', {
    message: `Podman could not ${what}: ${messageIn(text)}`,
    fault: 'ums',
    detail: `status ${status}\n${text.slice(0, 4000)}`,
  });
}

/** A change: goes on to its end when the agent is killed. */
export async function change(
  args: readonly string[],
  options: { env?: Record<string, string>; timeout_ms?: number; okExitCodes?: readonly number[] } = {},
): Promise<DetachedResult> {
  return await runDetached('podman', args, {
    timeout_ms: options.timeout_ms ?? CHANGE_TIMEOUT_MS,
    onTimeout: 'terminate',
    ...(options.env === undefined ? {} : { env: options.env }),
    ...(options.okExitCodes === undefined ? {} : { okExitCodes: options.okExitCodes }),
  });
}

/** Ends and removes the container with its anonymous volumes. Harmless when it is gone; a removal cut short is repeated. */
export async function removeContainer(id: string, name: string): Promise<void> {
  const path = `/containers/${id}?force=true&ignore=true&v=true&timeout=0`;
  const answer = await call({ method: 'DELETE', path, limit_ms: CHANGE_TIMEOUT_MS });
  // What failed for one container is told by an answer that is a success as a whole.
  if ((await inspectContainer(id)) !== undefined) throw refusal(`remove ${name}`, answer);
}

export async function podmanVersion(): Promise<string | undefined> {
  const path = await findProgram('podman');
  if (path === undefined) return undefined;
  return /(\d+\.\d+\.\d+)/.exec(await versionText(path))?.[1] ?? 'unknown';
}

export async function listContainers(): Promise<z.infer<typeof listedSchema>> {
  return required(await look('/containers/json?all=true', listedSchema));
}

/** The container of exactly this id or name, or undefined. */
export async function inspectContainer(reference: string): Promise<Inspect | undefined> {
  const inspect = await look(`/containers/${encodeURIComponent(reference)}/json`, inspectSchema);
  // Podman takes an id's beginning for a name; only the whole of either will do here.
  return inspect?.Id === reference || inspect?.Name === reference ? inspect : undefined;
}

export async function inspectVolume(name: string): Promise<Volume | undefined> {
  const volume = await look(`/volumes/${encodeURIComponent(name)}/json`, volumeSchema);
  return volume?.Name === name ? volume : undefined;
}

/** Containers, running or not, that mount the volume. */
export async function volumeUsers(name: string): Promise<string[]> {
  const filters = encodeURIComponent(JSON.stringify({ volume: [name] }));
  const users = required(await look(`/containers/json?all=true&filters=${filters}`, listedSchema));
  return users.map(({ Id: id }) => id);
}

export function inspectImage(reference: string): Promise<z.infer<typeof imageSchema> | undefined> {
  return look(`/images/${encodeURIComponent(reference)}/json`, imageSchema);
}

export async function networkExists(name: string): Promise<boolean> {
  return (await look(`/networks/${encodeURIComponent(name)}/json`, z.unknown())) !== undefined;
}

/** Digests of the contents of all layers here. */
export async function imageLayers(): Promise<string[]> {
  const images = required(await look('/images/json?all=true', imageSchema.pick({ Id: true }).array()));
  const layers = new Set<string>();
  for (const { Id: id } of images.slice(0, IMAGES_LIMIT)) {
    for (const digest of (await inspectImage(id))?.RootFS?.Layers ?? []) layers.add(digest);
  }
  return [...layers];
}
