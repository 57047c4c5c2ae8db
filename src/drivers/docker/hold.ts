import { rename } from 'node:fs/promises';
import { UmsError } from '#src/telemetry/errors.ts';
import { exists } from '../oci/files.ts';

const HELD = '.held-by-ums';

/**
 * Keeps Docker from starting the container, whoever asks for it: a person, a restart policy, or dockerd after a boot. Docker
 * has no such lock, and a service that is away must not begin anew from its files. To start it, Docker mounts its overlay
 * with the work directory that belongs to it; that one has another name for as long as the container is held. What is
 * mounted already does not notice.
 */
export async function hold(work: string): Promise<void> {
  if (!(await exists(work + HELD))) await rename(work, work + HELD);
}

export async function release(work: string): Promise<void> {
  if (!(await exists(work + HELD))) return;
  if (await exists(work)) {
    throw new UmsError('UMS_E_ENGINE', {
      message: `Docker has made ${work} anew while its container was held`,
      fault: 'ums',
      mend: `Remove it if it is empty, and move ${work + HELD} to its place.`,
    });
  }
  await rename(work + HELD, work);
}
