import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { run } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import type { ServiceOutput } from '../contract.ts';
import { isMissing, poll } from '../oci/cgroup.ts';
import { type DetachedResult, runDetached } from '../oci/child.ts';
import { findProgram, requireProgram, RUNC_ROOT } from '../oci/runtime.ts';
import { type Listed, listSchema, type RuncState, stateSchema } from './schema.ts';

const QUERY_TIMEOUT_MS = 15_000;
const CHANGE_TIMEOUT_MS = 60_000;
const PIPED = fileURLToPath(new URL('piped.sh', import.meta.url));

/** Bundles that another engine made for itself and looks after. */
const FOREIGN = /\/(?:containers\/storage|containerd|docker|crio|buildkit)\//;

/** Containers that nobody but runc knows. */
export async function listBundles(): Promise<Listed[]> {
  if ((await findProgram('runc')) === undefined) return [];
  const { stdout } = await run('runc', ['--root', RUNC_ROOT, 'list', '--format', 'json'], {
    timeout_ms: QUERY_TIMEOUT_MS,
  });
  const list = listSchema.parse(JSON.parse(stdout.trim() === '' ? '[]' : stdout));
  return list.filter((each) => !FOREIGN.test(each.bundle) && each.annotations?.['io.container.manager'] === undefined);
}

/** runc's word on a container; undefined when it knows none of that id. */
export async function runcState(id: string): Promise<RuncState | undefined> {
  const runc = await requireProgram('runc');
  const { stdout, stderr, exitCode } = await run(runc, ['--root', RUNC_ROOT, 'state', id], {
    timeout_ms: QUERY_TIMEOUT_MS,
    okExitCodes: [0, 1],
  });
  if (exitCode === 0) return stateSchema.parse(JSON.parse(stdout));
  if (/does not exist/.test(stderr)) return undefined;
  throw new UmsError('UMS_E_ENGINE', {
    message: `runc could not say what state ${id} is in: ${stderr.trim()}`,
    fault: 'ums',
  });
}

export async function changeRunc(args: readonly string[], what: string): Promise<DetachedResult> {
  try {
    return await runDetached(await requireProgram('runc'), ['--root', RUNC_ROOT, ...args], {
      timeout_ms: CHANGE_TIMEOUT_MS,
      onTimeout: 'terminate',
    });
  } catch (error) {
    if (!(error instanceof UmsError) || error.code !== 'UMS_E_CHILD') throw error;
    throw new UmsError('UMS_E_ENGINE', {
      message: `runc could not ${what}: ${error.message}`,
      fault: 'ums',
      ...(error.detail === undefined ? {} : { detail: error.detail }),
      cause: error,
    });
  }
}

/** Runs a command whose output becomes the container's, with loggers behind it that outlive the agent. */
export async function runPiped(
  command: string,
  args: readonly string[],
  output: ServiceOutput,
  timeout_ms: number,
): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'ums-piped-'));
  const status = join(directory, 'status');
  try {
    const child = spawn(PIPED, [status, output.out, output.err, command, ...args], { detached: true, stdio: 'ignore' });
    await new Promise<void>((resolve, reject) => {
      child.once('error', reject);
      child.once('exit', () => resolve());
    });
    let text = '';
    const ended = await poll(
      async () => {
        text = readStatus(status);
        return text !== '';
      },
      timeout_ms,
      2,
    );
    if (!ended) {
      throw new UmsError('UMS_E_TIMEOUT', {
        message: `${command} did not end within ${timeout_ms} ms`,
        fault: 'ums',
      });
    }
    if (text.trim() !== '0') {
      throw new UmsError('UMS_E_CHILD', { message: `${command} exited with ${text.trim()}`, fault: 'ums' });
    }
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

function readStatus(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if (isMissing(error)) return '';
    throw error;
  }
}
