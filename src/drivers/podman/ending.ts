import { UmsError } from '#src/telemetry/errors.ts';
import { freezerOf, poll } from '../oci/cgroup.ts';
import { killFrozen } from '../oci/frozen.ts';
import { change, inspectContainer } from './cli.ts';
import type { Inspect } from './schema.ts';

const END_LIMIT_MS = 30_000;
const CLEANED_LIMIT_MS = 5000;
const LOOK_MS = 20;

/** Ends the container. Its restart policy goes first, or Podman would bring the service back at once. */
export async function endForGood(inspect: Inspect, pids: readonly number[]): Promise<void> {
  if (inspect.HostConfig.RestartPolicy.Name !== 'no') await change(['update', '--restart', 'no', inspect.Id]);
  await endProcesses(inspect, pids);
}

/** Ends the processes where they stand; its restart policy may bring others at once. */
export async function endProcesses(inspect: Inspect, pids: readonly number[]): Promise<void> {
  const freezer = await freezerOf(inspect.State.Pid);
  if (freezer === undefined) return;
  await killFrozen(freezer, pids);
  const isOver = (words: readonly string[]) => async (): Promise<boolean> => {
    const { Status: status, Pid: pid } = (await inspectContainer(inspect.Id))?.State ?? {};
    return status === undefined || words.includes(status) || (pid !== 0 && pid !== inspect.State.Pid);
  };
  // Podman's clean-up follows the end and may fail, and then the container stays as it is.
  const ended =
    (await poll(isOver(['exited']), CLEANED_LIMIT_MS, LOOK_MS)) ||
    (await poll(isOver(['exited', 'stopped']), END_LIMIT_MS, LOOK_MS));
  if (ended) return;
  throw new UmsError('UMS_E_ENGINE', {
    message: `Podman does not notice that ${inspect.Name} has ended`,
    fault: 'source',
    mend: `Run podman container cleanup ${inspect.Name}.`,
  });
}
