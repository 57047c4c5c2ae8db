import type { ServiceState } from '../contract.ts';
import { type Freezer, freezerOf, isFrozen } from '../oci/cgroup.ts';
import type { RestoreArea } from '../oci/restore-area.ts';
import { initPid, RUNC_ROOT, waitsToBegin } from '../oci/runtime.ts';

/**
 * The state of a container that has processes, from the kernel and runc's own records: Podman's answer takes fifty
 * milliseconds, and this is asked while the service stands still. Undefined when only Podman can tell.
 */
export async function stateSeen(area: RestoreArea, id: string): Promise<ServiceState | undefined> {
  const freezer = await freezerSeen(id);
  if (freezer === undefined) return undefined;
  const arriving = await area.exists(id);
  if (await isFrozen(freezer)) return arriving ? 'restored' : 'frozen';
  if (arriving) return 'running';
  return (await waitsToBegin(RUNC_ROOT, id)) ? undefined : 'running';
}

/** Podman names the group after the container, so a process number that was used again is not taken for it. */
export async function freezerSeen(id: string): Promise<Freezer | undefined> {
  const pid = await initPid(RUNC_ROOT, id);
  const freezer = pid === undefined ? undefined : await freezerOf(pid);
  return freezer?.directory.includes(id) === true ? freezer : undefined;
}

/** Podman's word for where the container is in its life, the kernel's for whether its processes run. */
export async function stateOf(area: RestoreArea, id: string, status: string, pid: number): Promise<ServiceState> {
  const freezer = pid > 0 ? await freezerOf(pid) : undefined;
  switch (status) {
    case 'created':
    case 'configured':
      return 'created';
    case 'initialized':
      if (freezer === undefined) return 'created';
      if (await isFrozen(freezer)) return 'restored';
      // Podman has not taken note yet that the processes were let go; otherwise runc waits to begin.
      return (await area.exists(id)) ? 'running' : 'created';
    case 'running':
    case 'paused':
    case 'stopping':
      if (freezer === undefined) return 'stopped';
      return (await isFrozen(freezer)) ? 'frozen' : 'running';
    default:
      return 'stopped';
  }
}
