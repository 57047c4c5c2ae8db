import { z } from 'zod';
import { UmsError } from '#src/telemetry/errors.ts';
import type { ImageConfig } from '../images/config.ts';

/**
 * How a service is run inside its capsule: what its image says, and what was asked for instead. The fields are named as in
 * a Specification, so that one can be given as it is.
 */
const text = z.string().max(4096);
const long = z.string().max(131_072);
const absolutePath = text.startsWith('/');

export const settingsSchema = z.object({
  entrypoint: z.array(long).max(256).optional(),
  command: z.array(long).max(4096).optional(),
  env: z
    .array(long.regex(/^[^=\0]+=/))
    .max(4096)
    .optional(),
  workingDir: absolutePath.optional(),
  user: z.string().max(256).optional(),
  groups: z.array(z.string().max(256)).max(256).optional(),
  hostname: z.string().max(64).optional(),
  stopSignal: z.string().max(32).optional(),
  readOnlyRootfs: z.boolean().optional(),
  capabilities: z.object({ add: z.array(text).max(64), drop: z.array(text).max(64) }).optional(),
  mounts: z
    .array(
      z.object({
        kind: z.literal('bind'),
        source: absolutePath,
        destination: absolutePath,
        readOnly: z.boolean().default(false),
      }),
    )
    .max(512)
    .optional(),
  healthCheck: z.object({ test: z.array(text).max(64), timeout_ms: z.int().min(0).default(0) }).optional(),
  sysctls: z.record(text, text).optional(),
});
export type Settings = z.infer<typeof settingsSchema>;

export interface RunAs {
  args: string[];
  env: string[];
  workingDir: string;
  user: string;
  groups: string[];
  stopSignal: string;
  health: { test: string[]; timeout_ms: number } | undefined;
}

const DEFAULT_PATH = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
const NS_IN_MS = 1e6;
const HEALTH_LIMIT_MS = 30_000;

export function parseSettings(json: string, from: string): Settings {
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch (cause) {
    throw badSettings(from, 'it is not JSON', cause);
  }
  const parsed = settingsSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw badSettings(from, z.prettifyError(parsed.error), parsed.error);
}

function badSettings(from: string, why: string, cause: unknown): UmsError {
  return new UmsError('UMS_E_USAGE', {
    message: `${from} does not say how a service is run: ${why}`,
    fault: 'user',
    state: 'The service was not started.',
    mend: 'See docs/container-level.md for what it may say.',
    cause,
  });
}

/** The later of two settings wins, except that variables, mounts and capabilities add up. */
export function mergeSettings(first: Settings, second: Settings): Settings {
  const capabilities = [first.capabilities, second.capabilities];
  return {
    ...first,
    ...second,
    ...(first.env === undefined && second.env === undefined
      ? {}
      : { env: mergeEnv(first.env ?? [], second.env ?? []) }),
    ...(first.mounts === undefined && second.mounts === undefined
      ? {}
      : { mounts: [...(first.mounts ?? []), ...(second.mounts ?? [])] }),
    ...(capabilities.every((each) => each === undefined)
      ? {}
      : {
          capabilities: {
            add: capabilities.flatMap((each) => each?.add ?? []),
            drop: capabilities.flatMap((each) => each?.drop ?? []),
          },
        }),
  };
}

/** A variable that both set has the value of the second. */
function mergeEnv(first: readonly string[], second: readonly string[]): string[] {
  const all = new Map<string, string>();
  for (const entry of [...first, ...second]) all.set(entry.slice(0, entry.indexOf('=')), entry);
  return [...all.values()];
}

/** As engines do it: an entry point that was asked for makes the image's command void, and a command replaces only that. */
export function runAs(image: ImageConfig, asked: Settings): RunAs {
  const entrypoint = asked.entrypoint ?? image.Entrypoint ?? [];
  const command = asked.command ?? (asked.entrypoint === undefined ? (image.Cmd ?? []) : []);
  const args = [...entrypoint, ...command];
  if (args.length === 0) {
    throw new UmsError('UMS_E_USAGE', {
      message: 'Neither the image nor the command line says what program is to be run',
      fault: 'user',
      state: 'The service was not started.',
      mend: 'Name it at the end of the command line, or with --entrypoint.',
    });
  }
  const env = mergeEnv([DEFAULT_PATH, ...(image.Env ?? [])], asked.env ?? []);
  return {
    args,
    env,
    workingDir: asked.workingDir ?? blankIsRoot(image.WorkingDir),
    user: asked.user ?? image.User ?? '',
    groups: asked.groups ?? [],
    stopSignal: signalName(asked.stopSignal ?? image.StopSignal ?? 'TERM'),
    health: healthOf(image, asked),
  };
}

function blankIsRoot(path: string | null | undefined): string {
  return path === undefined || path === null || path === '' ? '/' : path;
}

function healthOf(image: ImageConfig, asked: Settings): RunAs['health'] {
  const test = asked.healthCheck?.test ?? image.Healthcheck?.Test ?? [];
  const kind = test[0];
  if (kind === undefined || kind === 'NONE' || test.length < 2) return undefined;
  const timeout_ms = asked.healthCheck?.timeout_ms ?? (image.Healthcheck?.Timeout ?? 0) / NS_IN_MS;
  const words = kind === 'CMD-SHELL' ? ['/bin/sh', '-c', ...test.slice(1)] : test.slice(kind === 'CMD' ? 1 : 0);
  return { test: words, timeout_ms: timeout_ms === 0 ? HEALTH_LIMIT_MS : timeout_ms };
}

/** SIGTERM, TERM or 15, as images write it. */
export function signalName(given: string): string {
  const name = given.toUpperCase().replace(/^SIG/, '');
  if (/^[A-Z0-9+-]{1,16}$/.test(name)) return name;
  throw new UmsError('UMS_E_USAGE', { message: `"${given}" is no signal`, fault: 'user' });
}
