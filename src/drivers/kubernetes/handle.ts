import { z } from 'zod';
import { handleReader } from '../handles.ts';
import { ownerSchema } from './owner-told.ts';

const containerIdSchema = z.string().regex(/^[0-9a-f]{64}$/);

/** What the driver must know of a pod between calls and restarts; everything else is asked of Kubernetes. */
const handleSchema = z.object({
  v: z.literal(1),
  engine: z.literal('kubernetes'),
  namespace: z.string(),
  name: z.string(),
  /** The pod's and its first container's, at the source. At the destination neither is known before the restore. */
  uid: z.string().optional(),
  container: containerIdSchema.optional(),
  /** Its other containers', in the order of its manifest. */
  more: z.array(containerIdSchema).optional(),
  /** At the source: where the volumes are that it claims, by their names. */
  claims: z.record(z.string(), z.string()).optional(),
  /** At the source: what made the pod, and would make another one. */
  owner: ownerSchema.optional(),
  /** The migration whose `create` made it; absent for a pod that somebody else made. */
  key: z.string().optional(),
});
export type PodHandle = z.infer<typeof handleSchema>;

export function writeHandle(handle: PodHandle): string {
  return JSON.stringify(handle);
}

export const readHandle = handleReader<PodHandle>('Kubernetes', handleSchema);
