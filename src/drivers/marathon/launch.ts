import { UmsError } from '#src/telemetry/errors.ts';
import { ServiceErrors } from '../oci/service-errors.ts';
import { startedOrRemoved } from '../scheduler/started.ts';
import { MarathonApi } from './api.ts';
import type { MarathonHandle } from './handle.ts';
import { idOf, MarathonScheduler, WORDS } from './index.ts';
import { idSchema } from './schema.ts';

/** Makes an app that there is not yet, and resolves when it runs on this host. */
export async function runApp(
  name: string,
  app: object,
  api: MarathonApi = MarathonApi.here(),
  scheduler: MarathonScheduler = new MarathonScheduler(),
  limit_ms?: number,
): Promise<void> {
  const id = idOf(name);
  if (!idSchema.safeParse(id).success) {
    throw new UmsError('UMS_E_SPECIFICATION', {
      message: `${name} is no name that an app of Marathon can have`,
      fault: 'user',
      state: 'Nothing was changed.',
      mend: 'Use small letters, digits, dots and hyphens, and an underscore between a group and what is in it.',
    });
  }
  if (!(await api.create({ ...app, id }))) throw new ServiceErrors(WORDS.name, WORDS.commands).nameTaken(name);
  const handle: MarathonHandle = { v: 1, engine: 'marathon', id, name };
  await startedOrRemoved(scheduler, handle, () => api.takeBack(id), limit_ms);
}
