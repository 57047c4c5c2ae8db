import { UmsError } from '#src/telemetry/errors.ts';
import { poll, processesOf, waitUntilUntraced } from '../oci/cgroup.ts';
import type { RuntimeContainer } from '../oci/container.ts';
import { exists } from '../oci/files.ts';
import { killFrozen } from '../oci/frozen.ts';
import { initPid } from '../oci/runtime.ts';
import { freezerSeen } from '../oci/seen.ts';
import { say } from './gate.ts';
import { podDirectory, type PodName } from './node.ts';

/** Milliseconds for CRIU to let go of tasks. */
const UNTRACED_LIMIT_MS = 60_000;
const END_LIMIT_MS = 60_000;

/** Its processes end without one more instruction of theirs. A dump that goes on is waited for. */
export async function endWhereItStands(container: RuntimeContainer): Promise<void> {
  const freezer = await freezerSeen(container);
  if (freezer === undefined) return;
  const pids = await processesOf(freezer);
  await waitUntilUntraced(pids, UNTRACED_LIMIT_MS);
  await killFrozen(freezer, pids, 'at once');
}

export async function requireEnded(name: string, { root, id }: RuntimeContainer): Promise<void> {
  if (await poll(async () => (await initPid(root, id)) === undefined, END_LIMIT_MS, 20)) return;
  throw new UmsError('UMS_E_ENGINE', {
    message: `The container of pod ${name} does not end`,
    fault: 'ums',
    mend: `See the logs of the kubelet and of containerd about ${id.slice(0, 12)}.`,
  });
}

/**
 * The gate stays until the kubelet has done with a pod that is deleted: it may be about to start the container, which without
 * a gate would begin anew. Who waits there keeps the kubelet from taking notice of the end.
 */
export async function leaveGate(key: string, { name, uid }: PodName): Promise<void> {
  const left = async (): Promise<boolean> => !(await say(key, 'no')) && !(await exists(podDirectory(uid)));
  if (await poll(left, END_LIMIT_MS, 50)) return;
  throw new UmsError('UMS_E_ENGINE', {
    message: `The kubelet does not let go of pod ${name}`,
    fault: 'ums',
    state: 'The pod is deleted, and does not run.',
    mend: `See the log of the kubelet about ${uid}.`,
  });
}
