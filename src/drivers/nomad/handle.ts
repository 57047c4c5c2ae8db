import { z } from 'zod';
import { handleReader } from '../handles.ts';

/** A job, which stays the same one whatever becomes of its allocations. */
const handleSchema = z.object({
  v: z.literal(1),
  engine: z.literal('nomad'),
  namespace: z.string().min(1),
  id: z.string().min(1),
  name: z.string(),
});
export type NomadHandle = z.infer<typeof handleSchema>;

export function writeHandle(handle: NomadHandle): string {
  return JSON.stringify(handle);
}

export const readHandle = handleReader<NomadHandle>('Nomad', handleSchema);
