import { constants } from 'node:fs';
import { mkdir, open, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { run } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { isMissing, poll } from '../oci/cgroup.ts';
import { exists } from '../oci/files.ts';

/**
 * The agent's side of pod-runtime.sh: the place where a pod's container waits for the service that is on its way. It is on
 * the disk and not in /run, because a boot must not let the pod begin anew while the service may still be elsewhere.
 */
const ROOT = '/var/lib/ums-runtime';
const OPEN_LIMIT_MS = 5000;

export interface Waiting {
  container: string;
  pid: number;
}

function directoryOf(key: string): string {
  // A key comes from the journal, but a path is not the place to trust it.
  if (!/^[a-zA-Z0-9][a-zA-Z0-9_-]{0,127}$/.test(key)) throw new Error(`not a key: ${key}`);
  return join(ROOT, key);
}

export async function makeGate(key: string): Promise<void> {
  const directory = directoryOf(key);
  await mkdir(directory, { recursive: true, mode: 0o700 });
  if (!(await exists(join(directory, 'go')))) await run('mkfifo', ['-m', '600', join(directory, 'go')]);
}

/** From now on the pod starts like any other. */
export async function removeGate(key: string): Promise<void> {
  await rm(directoryOf(key), { recursive: true, force: true });
}

/** The container that waits there now. */
export async function waitingAt(key: string): Promise<Waiting | undefined> {
  const text = await readIfThere(join(directoryOf(key), 'held'));
  const [, container, pid] = /^([0-9a-f]{64}) (\d+)$/.exec(text?.trim() ?? '') ?? [];
  if (container === undefined || pid === undefined || !(await exists(`/proc/${pid}`))) return undefined;
  return { container, pid: Number(pid) };
}

/** Says the word to whoever waits; false when nobody does. */
export async function say(key: string, word: 'go' | 'no'): Promise<boolean> {
  const directory = directoryOf(key);
  await rm(join(directory, 'ended'), { force: true });
  return await poll(
    async () => {
      if ((await waitingAt(key)) === undefined) return false;
      try {
        // It can be opened for writing only while somebody reads from it.
        const pipe = await open(join(directory, 'go'), constants.O_WRONLY | constants.O_NONBLOCK);
        try {
          await pipe.write(`${word}\n`);
        } finally {
          await pipe.close();
        }
        return true;
      } catch (error) {
        if (error instanceof Error && 'code' in error && error.code === 'ENXIO') return false;
        throw error;
      }
    },
    (await waitingAt(key)) === undefined ? 0 : OPEN_LIMIT_MS,
  );
}

/** Waits until the restore that was let go has ended; throws when it failed. */
export async function ended(key: string, waiting: Waiting, limit_ms: number): Promise<void> {
  const file = join(directoryOf(key), 'ended');
  let status: string | undefined;
  const over = await poll(
    async () => {
      status = await readIfThere(file);
      return status !== undefined || !(await exists(`/proc/${waiting.pid}`));
    },
    limit_ms,
    2,
  );
  if (!over) {
    throw new UmsError('UMS_E_TIMEOUT', { message: `The restore did not end within ${limit_ms} ms`, fault: 'ums' });
  }
  // It may have ended right after the first look.
  status ??= await readIfThere(file);
  if (status?.trim() === '0') return;
  throw new UmsError('UMS_E_CHILD', {
    message: `The runtime of the pod's container ${status === undefined ? 'was ended' : `exited with ${status.trim()}`}`,
    fault: 'ums',
  });
}

async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}
