import { ServiceErrors } from '../oci/service-errors.ts';
import { startedOrRemoved } from '../scheduler/started.ts';
import { NomadApi } from './api.ts';
import type { NomadHandle } from './handle.ts';
import { NomadScheduler, WORDS } from './index.ts';

/** Makes a job that there is not yet, and resolves when it runs on this host. */
export async function runJob(
  job: { ID: string; Namespace: string },
  api: NomadApi = NomadApi.here(),
  scheduler: NomadScheduler = new NomadScheduler(),
  limit_ms?: number,
): Promise<void> {
  const name = { id: job.ID, namespace: job.Namespace };
  // With 0 Nomad makes a job only where there is none of that name, also none that was stopped.
  if (!(await api.register(job, 0))) throw new ServiceErrors(WORDS.name, WORDS.commands).nameTaken(job.ID);
  const handle: NomadHandle = { v: 1, engine: 'nomad', name: job.ID, ...name };
  await startedOrRemoved(scheduler, handle, () => api.deregister(name, true), limit_ms);
}
