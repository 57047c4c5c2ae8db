import { run } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import type { z } from 'zod';
import { type DetachedResult, runDetached } from '../oci/child.ts';
import { findProgram, versionText } from '../oci/runtime.ts';
import { imageSchema, type Inspect, inspectListSchema, listedSchema, type Volume, volumeSchema } from './schema.ts';

/** Podman's command line, typed. Podman is asked every time; nothing is remembered here. */
const QUERY_TIMEOUT_MS = 30_000;
/** Milliseconds for a command that changes something; the restore has its own. */
export const CHANGE_TIMEOUT_MS = 120_000;
const CONTAINER_IDS_LIMIT = 1000;

/** Podman's own `Error: …` line, without its warnings. */
function errorLine(stderr: string): string | undefined {
  return stderr
    .split('\n')
    .findLast((line) => line.startsWith('Error: '))
    ?.slice('Error: '.length);
}

function parse<T>(schema: z.ZodType<T>, text: string, what: string): T {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw unexpected(what, error);
  }
  const result = schema.safeParse(value);
  if (!result.success) throw unexpected(what, result.error);
  return result.data;
}

function unexpected(what: string, cause: unknown): UmsError {
  return new UmsError('UMS_E_ENGINE', {
    message: `Podman's answer to \`podman ${what}\` is not what this version of ums knows`,
    fault: 'ums',
    mend: 'Podman 5 is supported; please report this with the output of `podman version`.',
    detail: cause instanceof Error ? cause.message : String(cause),
    cause,
  });
}

export function engineError(error: unknown, what: string): unknown {
  if (!(error instanceof UmsError) || error.code !== 'UMS_E_CHILD') return error;
  return new UmsError('UMS_E_ENGINE', {
    message: `Podman could not ${what}: ${error.message}`,
    fault: 'ums',
    ...(error.detail === undefined ? {} : { detail: error.detail }),
    cause: error,
  });
}

/** A question: short, bounded, may be cut off. */
export async function ask(args: readonly string[], okExitCodes: readonly number[] = [0]): Promise<string> {
  try {
    const { stdout } = await run('podman', args, { timeout_ms: QUERY_TIMEOUT_MS, okExitCodes, pickLine: errorLine });
    return stdout;
  } catch (error) {
    throw engineError(error, `answer \`podman ${args.slice(0, 2).join(' ')}\``);
  }
}

async function answersYes(args: readonly string[]): Promise<boolean> {
  const { exitCode } = await run('podman', args, {
    timeout_ms: QUERY_TIMEOUT_MS,
    okExitCodes: [0, 1],
    pickLine: errorLine,
  });
  return exitCode === 0;
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

export async function podmanVersion(): Promise<string | undefined> {
  const path = await findProgram('podman');
  if (path === undefined) return undefined;
  return /(\d+\.\d+\.\d+)/.exec(await versionText(path))?.[1] ?? 'unknown';
}

export async function listContainers(): Promise<z.infer<typeof listedSchema>> {
  return parse(listedSchema, await ask(['ps', '--all', '--no-trunc', '--format', 'json']), 'ps');
}

/** The container of exactly this id or name, or undefined. */
export async function inspectContainer(reference: string): Promise<Inspect | undefined> {
  const { stdout, stderr, exitCode } = await run('podman', ['container', 'inspect', reference], {
    timeout_ms: QUERY_TIMEOUT_MS,
    okExitCodes: [0, 125],
    pickLine: errorLine,
  });
  if (exitCode === 125) {
    if (/no such container/i.test(stderr)) return undefined;
    throw new UmsError('UMS_E_ENGINE', {
      message: `Podman could not say what ${reference} is: ${errorLine(stderr) ?? 'no reason given'}`,
      fault: 'ums',
      detail: stderr.slice(-4000),
    });
  }
  // Podman takes an id's beginning for a name; only the whole of either will do here.
  return parse(inspectListSchema, stdout, 'inspect').find(
    (inspect) => inspect.Id === reference || inspect.Name === reference,
  );
}

export async function inspectVolume(name: string): Promise<Volume | undefined> {
  if (!(await answersYes(['volume', 'exists', name]))) return undefined;
  const list = parse(volumeSchema.array(), await ask(['volume', 'inspect', name]), 'volume inspect');
  return list.find((volume) => volume.Name === name);
}

/** Containers, running or not, that mount the volume. */
export async function volumeUsers(name: string): Promise<string[]> {
  const text = await ask(['ps', '--all', '--no-trunc', '--quiet', '--filter', `volume=${name}`]);
  return text
    .split('\n')
    .filter((line) => line !== '')
    .slice(0, CONTAINER_IDS_LIMIT);
}

export async function inspectImage(reference: string): Promise<z.infer<typeof imageSchema> | undefined> {
  if (!(await answersYes(['image', 'exists', reference]))) return undefined;
  return parse(imageSchema.array(), await ask(['image', 'inspect', reference]), 'image inspect')[0];
}

export async function networkExists(name: string): Promise<boolean> {
  return await answersYes(['network', 'exists', name]);
}
