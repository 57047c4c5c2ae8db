import { z } from 'zod';
import { handleReader } from '../handles.ts';

/** A service of the swarm, which stays the same one whatever becomes of its tasks. */
const handleSchema = z.object({
  v: z.literal(1),
  engine: z.literal('swarm'),
  id: z.string().regex(/^[0-9a-z]{25}$/),
  name: z.string(),
});
export type SwarmHandle = z.infer<typeof handleSchema>;

export function writeHandle(handle: SwarmHandle): string {
  return JSON.stringify(handle);
}

export const readHandle = handleReader<SwarmHandle>('Swarm', handleSchema);
