import type { ServiceState } from '../contract.ts';
import { type Freezer, freezerOf, isFrozen } from './cgroup.ts';
import type { RuntimeContainer } from './container.ts';
import type { RestoreArea } from './restore-area.ts';
import { initPid, waitsToBegin } from './runtime.ts';

/**
 * The state of a container that has processes, from the kernel and runc's own records: an engine's answer takes tens of
 * milliseconds, and this is asked while the service stands still. Undefined when only the engine can tell.
 */
export async function stateSeen(area: RestoreArea, container: RuntimeContainer): Promise<ServiceState | undefined> {
  const { root, id } = container;
  const freezer = await freezerSeen(container);
  if (freezer === undefined) return undefined;
  const arriving = await area.exists(id);
  if (await isFrozen(freezer)) return arriving ? 'restored' : 'frozen';
  if (arriving) return 'running';
  return (await waitsToBegin(root, id)) ? undefined : 'running';
}

/** Engines name the group after the container, so a process number that was used again is not taken for it. */
export async function freezerSeen({ root, id }: RuntimeContainer): Promise<Freezer | undefined> {
  const pid = await initPid(root, id);
  const freezer = pid === undefined ? undefined : await freezerOf(pid);
  return freezer?.directory.includes(id) === true ? freezer : undefined;
}
