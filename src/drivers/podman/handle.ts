import { z } from 'zod';
import { handleReader } from '../handles.ts';

/** What the driver must know of a container between calls and restarts; everything else is asked of Podman. */
const handleSchema = z.object({
  v: z.literal(1),
  engine: z.literal('podman'),
  id: z.string().regex(/^[0-9a-f]{64}$/),
  name: z.string(),
  /** The migration whose `create` made it; absent for a service that a person made. */
  key: z.string().optional(),
  /** Volumes that the other system has too: nothing of theirs is made, changed or removed. */
  shared: z.array(z.string()).optional(),
});
export type PodmanHandle = z.infer<typeof handleSchema>;

export function writeHandle(handle: PodmanHandle): string {
  return JSON.stringify(handle);
}

export const readHandle = handleReader<PodmanHandle>('Podman', handleSchema);
