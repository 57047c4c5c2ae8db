import { z } from 'zod';
import { handleReader } from '../handles.ts';

/** What the driver must know of a container between calls and restarts; everything else is asked of Docker. */
const handleSchema = z.object({
  v: z.literal(1),
  engine: z.literal('docker'),
  id: z.string().regex(/^[0-9a-f]{64}$/),
  name: z.string(),
  /** The runtime's `--root`. */
  root: z.string().startsWith('/'),
  /** Its network namespace is furnished by Docker's hook. */
  hookedNetwork: z.boolean(),
  /** The file that becomes its /etc/hostname (hold.ts); empty for one that has not run yet. */
  hostname: z.string(),
  /** The migration whose `create` made it; absent for a service that a person made. */
  key: z.string().optional(),
});
export type DockerHandle = z.infer<typeof handleSchema>;

export function writeHandle(handle: DockerHandle): string {
  return JSON.stringify(handle);
}

export const readHandle = handleReader<DockerHandle>('Docker', handleSchema);
