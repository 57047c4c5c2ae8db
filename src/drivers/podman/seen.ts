import type { ServiceState } from '../contract.ts';
import { freezerOf, isFrozen } from '../oci/cgroup.ts';
import type { RestoreArea } from '../oci/restore-area.ts';

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
