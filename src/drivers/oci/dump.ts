import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { criuVersion, versionAtLeast } from '#src/checkpoint/criu.ts';
import { criuFailure } from '#src/checkpoint/errors.ts';
import { UmsError, toUmsError } from '#src/telemetry/errors.ts';
import type { CheckpointRequest } from '../contract.ts';
import { isMissing, poll } from './cgroup.ts';
import { runDetached } from './child.ts';
import { requireProgram } from './runtime.ts';

/** Dumps a frozen container with its runtime; CRIU leaves it frozen, and it runs no instruction in between. */
export async function dumpFrozen(root: string, id: string, request: CheckpointRequest): Promise<void> {
  const runc = await requireProgram('runc');
  const settings = await mkdtemp(join(tmpdir(), 'ums-dump-'));
  const config = join(settings, 'criu.conf');
  // CRIU 4 can leave connections alone instead of locking and copying them; they are closed at the destination anyhow.
  const connections = versionAtLeast(await criuVersion(), '4.0') ? 'tcp-close' : 'tcp-established';
  const args = [
    '--root',
    root,
    'checkpoint',
    '--leave-running',
    '--image-path',
    request.imagesDir,
    '--work-path',
    request.workDir,
    '--file-locks',
    ...(request.pageServer === undefined
      ? []
      : ['--page-server', `${request.pageServer.address}:${request.pageServer.port}`]),
    id,
  ];
  try {
    // The service is frozen and its connections are closed at the destination, so no packet has to be kept from it.
    await writeFile(config, `${connections}\nnetwork-lock skip\nverbosity=3\n`, { mode: 0o600 });
    await runDetached(runc, args, {
      env: { CRIU_CONFIG_FILE: config },
      timeout_ms: request.timeout_ms,
      onTimeout: 'leave',
    });
  } catch (error) {
    if (error instanceof UmsError && error.code === 'UMS_E_TIMEOUT') throw error;
    throw criuFailure('UMS_E_DUMP', await logOf(request.workDir, 'dump.log'), toUmsError(error));
  } finally {
    await rm(settings, { recursive: true, force: true });
  }
}

/**
 * Waits until no `runc checkpoint` works on the container any more. An agent that was killed leaves its dump running, and
 * CRIU puts the freezer back into the state in which it found it: thawing before that would not last.
 */
export async function waitForDumps(id: string, limit_ms: number): Promise<void> {
  if (await poll(async () => !(await isBeingDumped(id)), limit_ms, 20)) return;
  throw new UmsError('UMS_E_TIMEOUT', {
    message: `A dump of ${id} that was started earlier has not ended`,
    fault: 'ums',
    state: 'The service is frozen.',
    mend: 'Wait until the criu process ends and try again; do not kill it with SIGKILL.',
  });
}

async function isBeingDumped(id: string): Promise<boolean> {
  for (const entry of await readdir('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    const words = (await commandLine(entry)).split('\0');
    if (words.includes('checkpoint') && words.includes(id)) return true;
  }
  return false;
}

async function commandLine(pid: string): Promise<string> {
  try {
    return await readFile(`/proc/${pid}/cmdline`, 'utf8');
  } catch (error) {
    if (isMissing(error)) return '';
    throw error;
  }
}

/** The log's text, or nothing: it is evidence, and its absence must not hide the error it would explain. */
export async function logOf(workDir: string, name: string): Promise<string> {
  try {
    return await readFile(join(workDir, name), 'utf8');
  } catch {
    return '';
  }
}
