import { UmsError } from '#src/telemetry/errors.ts';
import { poll } from '../oci/cgroup.ts';
import type { Scheduled, Scheduler } from './scheduled.ts';

const START_LIMIT_MS = 60_000;

/**
 * Waits until a service that was just made runs on this host. A scheduler says yes to what it will never start (no node is as
 * it must be, the task may not have what it asks for), so one that does not start is removed by `undo`: nobody else knows
 * of it.
 */
export async function startedOrRemoved<Seen extends Scheduled, Handle extends { name: string }>(
  scheduler: Scheduler<Seen, Handle>,
  handle: Handle,
  undo: () => Promise<void>,
  limit_ms = START_LIMIT_MS,
): Promise<void> {
  const runs = async () => (await scheduler.find(handle))?.state === 'running';
  if (await poll(runs, limit_ms, scheduler.look_ms)) return;
  const seen = await scheduler.find(handle);
  const { name, look } = scheduler.words;
  await undo();
  throw new UmsError('UMS_E_ENGINE', {
    message: `${name} did not start ${handle.name} here: ${seen === undefined ? 'it is gone' : scheduler.trouble(seen)}`,
    fault: 'destination',
    state: 'It was removed again.',
    mend: `See docs/container-level.md for what ${name} must allow; ${look(handle.name)} tells of one that is started by hand.`,
  });
}
