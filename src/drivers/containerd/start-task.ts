import { constants } from 'node:fs';
import { mkdir, mkdtemp, open, rm, rmdir } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { UmsError } from '#src/telemetry/errors.ts';
import { run } from '#src/telemetry/exec.ts';
import { z } from 'zod';
import { runDetached } from '../oci/child.ts';
import { isMissing, poll } from '../oci/cgroup.ts';
import { commandLines } from '../oci/command-lines.ts';
import { ContainerdClient, type TaskStdio, withRuntime } from './client.ts';
import { type Stdio, stdioSchema } from './handle.ts';
import { hold, release } from './hold.ts';

/**
 * Starts a container's task, as `ctr tasks start --detach` does, in a process of its own: containerd ends what it was asked
 * to start when whoever asked goes away, and the agent may be killed. `ctr` itself cannot name a runtime for one task.
 */
const FIFOS = '/run/containerd/fifo';
const END_LIMIT_MS = 60_000;
const PROGRAM = fileURLToPath(new URL('start-task-command.ts', import.meta.url));

const taskRequestSchema = z.object({
  address: z.string(),
  namespace: z.string(),
  id: z.string(),
  stdio: stdioSchema,
  /** The runtime for this one task; without it, what the container's record says. */
  runtime: z.string().optional(),
});
export type TaskRequest = z.infer<typeof taskRequestSchema>;

export async function startTask(request: TaskRequest, limit_ms: number): Promise<void> {
  await waitForStarts(request.id);
  const words = ['--disable-warning=ExperimentalWarning', PROGRAM, JSON.stringify(request)];
  await runDetached(process.execPath, words, { timeout_ms: limit_ms, onTimeout: 'terminate' });
}

/** Waits for starts of this container that are under way, also those that an agent before this one has begun. */
export async function waitForStarts(id: string): Promise<void> {
  const asked = `"id":${JSON.stringify(id)}`;
  const isUnderWay = async (): Promise<boolean> => {
    for await (const words of commandLines()) {
      if (words.includes(PROGRAM) && words.some((word) => word.includes(asked))) return true;
    }
    return false;
  };
  if (await poll(async () => !(await isUnderWay()), END_LIMIT_MS, 20)) return;
  throw new UmsError('UMS_E_TIMEOUT', {
    message: `A start of ${id} that was begun earlier has not ended`,
    fault: 'ums',
    mend: 'See what containerd does with it: ctr tasks ls',
  });
}

/** What the program does. A start that fails leaves the container held as it was, if it was. */
export async function startHere(text: string): Promise<void> {
  const { address, namespace, id, stdio, runtime } = taskRequestSchema.parse(JSON.parse(text));
  const client = new ContainerdClient({ address, namespace });
  const container = await client.container(id);
  if (container === undefined) throw new Error(`there is no container ${id}`);
  // One that has ended is in the way of the next; one that runs is not deleted, and the start is refused.
  if ((await client.task(id))?.status === 'STOPPED') await client.deleteTask(id);
  const rootfs = await client.snapshotMounts(container.snapshotter, container.snapshot_key);
  const options = runtime === undefined ? undefined : withRuntime(container.runtime?.options, runtime);
  const { paths, close, remove } = await openStdio(stdio, id);
  let created = false;
  try {
    await release(client, id);
    await client.createTask(id, rootfs, paths, options);
    created = true;
    await client.startTask(id);
  } catch (error) {
    if (runtime !== undefined) await hold(client, id);
    if (created) await client.deleteTask(id);
    await remove();
    throw error;
  } finally {
    await close();
  }
}

interface OpenStdio {
  paths: TaskStdio;
  close: () => Promise<void>;
  remove: () => Promise<void>;
}

const nothing = async (): Promise<void> => undefined;

async function openStdio(stdio: Stdio, id: string): Promise<OpenStdio> {
  if (stdio.kind === 'null') return { paths: { stdin: '', stdout: '', stderr: '' }, close: nothing, remove: nothing };
  if (stdio.kind === 'uri') {
    return { paths: { stdin: '', stdout: stdio.uri, stderr: stdio.uri }, close: nothing, remove: nothing };
  }
  await mkdir(FIFOS, { recursive: true, mode: 0o700 });
  const directory = await mkdtemp(join(FIFOS, 'ums-'));
  const path = (name: string): string => join(directory, `${id}-${name}`);
  const paths = { stdin: stdio.stdin ? path('stdin') : '', stdout: path('stdout'), stderr: path('stderr') };
  const made = Object.values(paths).filter((each) => each !== '');
  await run('mkfifo', ['-m', '700', ...made]);
  // The shim opens them for writing only when somebody reads; then it keeps an end for reading itself.
  const readers = await Promise.all(
    [paths.stdout, paths.stderr].map((each) => open(each, constants.O_RDONLY | constants.O_NONBLOCK)),
  );
  return {
    paths,
    close: async () => void (await Promise.all(readers.map((reader) => reader.close()))),
    remove: () => removeFifos(paths),
  };
}

/** Removes the pipes of a task that is gone, with their directory, where clients of containerd make them. */
export async function removeFifos({ stdin, stdout, stderr }: TaskStdio): Promise<void> {
  const paths = [stdin, stdout, stderr].filter((path) => dirname(dirname(path)) === FIFOS && basename(path) !== '');
  for (const path of paths) await rm(path, { force: true });
  for (const directory of new Set(paths.map((path) => dirname(path)))) {
    await rmdir(directory).catch((error: unknown) => {
      if (!isMissing(error)) throw error;
    });
  }
}
