import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { UmsError } from '#src/telemetry/errors.ts';
import { freezerOf, isMissing, poll } from '../oci/cgroup.ts';
import { change, inspectContainer } from './cli.ts';
import type { Inspect } from './schema.ts';

const END_LIMIT_MS = 30_000;

/**
 * Ends the frozen processes without one more instruction of theirs: the kernel kills frozen tasks where they stand.
 * The restart policy goes first, or Podman would bring the service back at once.
 */
export async function endFrozen(inspect: Inspect, pids: readonly number[]): Promise<void> {
  if (inspect.HostConfig.RestartPolicy.Name !== 'no') await change(['update', '--restart', 'no', inspect.Id]);
  const freezer = await freezerOf(inspect.State.Pid);
  if (freezer === undefined) return;
  if (freezer.version === 2) {
    await writeFile(join(freezer.directory, 'cgroup.kill'), '1');
  } else {
    // The first version lets tasks die only once they are thawed; with the signal pending they run nothing of theirs.
    for (const pid of pids) kill(pid);
    await writeFile(join(freezer.directory, 'freezer.state'), 'THAWED');
  }
  const ended = await poll(
    async () => {
      const status = (await inspectContainer(inspect.Id))?.State.Status;
      return status === undefined || status === 'exited' || status === 'stopped';
    },
    END_LIMIT_MS,
    50,
  );
  if (ended) return;
  throw new UmsError('UMS_E_ENGINE', {
    message: `Podman does not notice that ${inspect.Name} has ended`,
    fault: 'source',
    mend: `Run podman container cleanup ${inspect.Name}.`,
  });
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if (!isMissing(error)) throw error;
  }
}
