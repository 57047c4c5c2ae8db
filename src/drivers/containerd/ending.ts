import { constants } from 'node:os';
import { UmsError } from '#src/telemetry/errors.ts';
import { poll, processesOf } from '../oci/cgroup.ts';
import { killFrozen } from '../oci/frozen.ts';
import { freezerSeen } from '../oci/seen.ts';
import type { ContainerdClient } from './client.ts';
import type { ContainerdHandle } from './handle.ts';
import { wantRunning } from './labels.ts';
import { removeFifos } from './start-task.ts';

const END_LIMIT_MS = 30_000;
/** What a service is given to end by itself. */
const STOP_LIMIT_MS = 10_000;
const POLL_MS = 20;
const STOP_SIGNAL = 'io.containerd.image.config.stop-signal';

/** Kills the processes where they stand, frozen or not, and waits until containerd has seen it. */
async function endProcesses(client: ContainerdClient, known: ContainerdHandle): Promise<void> {
  const freezer = await freezerSeen(known);
  if (freezer === undefined) return;
  await killFrozen(freezer, await processesOf(freezer), 'at once');
  if (await hasEnded(client, known.id, END_LIMIT_MS)) return;
  throw new UmsError('UMS_E_ENGINE', {
    message: `containerd does not notice that ${known.id} has ended`,
    fault: 'ums',
    mend: `Look at \`ctr tasks ls\`, and restart containerd if it insists.`,
  });
}

async function hasEnded(client: ContainerdClient, id: string, limit_ms: number): Promise<boolean> {
  return await poll(
    async () => {
      const task = await client.task(id);
      return task === undefined || task.status === 'STOPPED';
    },
    limit_ms,
    POLL_MS,
  );
}

/** Ends the task and removes what is left of it, with its pipes, which whoever else removes it may leave. */
export async function endTask(client: ContainerdClient, known: ContainerdHandle): Promise<void> {
  const { id } = known;
  const task = await client.task(id);
  if (task === undefined) return;
  await endProcesses(client, known);
  // One that was made but never begun has a process that waits for its start.
  if ((await client.task(id))?.status === 'CREATED') await client.killTask(id, constants.signals.SIGKILL, true);
  await hasEnded(client, id, END_LIMIT_MS);
  await client.deleteTask(id);
  await removeFifos(task);
}

/** As a person stops it: it is asked first. */
export async function stopTask(client: ContainerdClient, known: ContainerdHandle): Promise<void> {
  const { id } = known;
  await wantRunning(client, id, false);
  const task = await client.task(id);
  if (task === undefined) return;
  if (task.status !== 'STOPPED') {
    const asked = (await client.container(id))?.labels[STOP_SIGNAL] ?? 'SIGTERM';
    await client.killTask(id, signalNumber(asked), false);
    await hasEnded(client, id, STOP_LIMIT_MS);
  }
  await endTask(client, known);
  // The restart monitor may have removed the task meanwhile.
  await removeFifos(task);
}

/** `SIGTERM`, `TERM` or `15`. */
function signalNumber(name: string): number {
  const plain = name.toUpperCase().replace(/^SIG/, '');
  const known = Object.entries(constants.signals).find(([each]) => each === `SIG${plain}`)?.[1];
  return known ?? (Number(plain) || constants.signals.SIGTERM);
}
