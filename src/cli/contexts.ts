import { readdir, readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { isAbsolute, join } from 'node:path';
import { z } from 'zod';
import { UmsError } from '#src/telemetry/errors.ts';
import { suggestion } from './suggest.ts';
import type { Io } from './terminal.ts';

/** A context names the agent that commands talk to; `ums lab up` writes one for each of its hosts. */
export const contextSchema = z.object({
  name: z.string().regex(/^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$/),
  socket: z.string().max(4096).refine(isAbsolute, 'must be an absolute path'),
});
export type Context = z.infer<typeof contextSchema>;

type Env = Io['env'];
const CONTEXT_LIMIT = 1000;

export function contextsDirectory(env: Env): string {
  return join(env['UMS_CONFIG_DIR'] ?? join(env['HOME'] ?? homedir(), '.config', 'ums'), 'contexts');
}

export function localSocket(env: Env): string {
  return join(env['UMS_RUN_DIR'] ?? '/run/ums', 'api', 'agent.sock');
}

export async function listContexts(env: Env): Promise<Context[]> {
  let names: string[];
  try {
    names = await readdir(contextsDirectory(env));
  } catch (thrown) {
    // No directory simply means that nobody has made a context yet.
    if (isMissing(thrown)) return [];
    throw thrown;
  }
  const files = names.filter((name) => name.endsWith('.json')).sort();
  const contexts = await Promise.all(files.slice(0, CONTEXT_LIMIT).map((file) => readContext(env, file)));
  return contexts.filter((context) => context !== undefined);
}

async function readContext(env: Env, file: string): Promise<Context | undefined> {
  const path = join(contextsDirectory(env), file);
  try {
    return contextSchema.parse(JSON.parse(await readFile(path, 'utf8')));
  } catch (thrown) {
    // It may have been removed by `ums lab down` between the listing and the reading.
    if (isMissing(thrown)) return undefined;
    throw new UmsError('UMS_E_USAGE', {
      message: `The context file ${path} cannot be read: ${thrown instanceof Error ? thrown.message : String(thrown)}`,
      fault: 'user',
      mend: 'It must be {"name": NAME, "socket": "/absolute/path"}. Correct or delete it.',
      cause: thrown,
    });
  }
}

/** The named context, or the local agent's socket when none is named. */
export async function resolveContext(name: string | undefined, env: Env): Promise<Context> {
  if (name === undefined || name === '') return { name: 'local', socket: localSocket(env) };
  const contexts = await listContexts(env);
  const found = contexts.find((context) => context.name === name);
  if (found !== undefined) return found;
  if (name === 'local') return { name, socket: localSocket(env) };
  const names = contexts.map((context) => context.name);
  const hint = suggestion(name, names, 'There are');
  throw new UmsError('UMS_E_USAGE', {
    message: `There is no context "${name}".`,
    fault: 'user',
    mend:
      hint === '' ? 'Contexts are made by `ums lab up`; without --context the agent on this machine is used.' : hint,
  });
}

function isMissing(thrown: unknown): boolean {
  return thrown instanceof Error && 'code' in thrown && thrown.code === 'ENOENT';
}
