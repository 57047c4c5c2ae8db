import { z } from 'zod';
import { handleReader } from '../handles.ts';
import { idSchema } from './schema.ts';

/** An app, which stays the same one whatever becomes of its tasks. */
const handleSchema = z.object({
  v: z.literal(1),
  engine: z.literal('marathon'),
  id: idSchema,
  name: z.string(),
});
export type MarathonHandle = z.infer<typeof handleSchema>;

export function writeHandle(handle: MarathonHandle): string {
  return JSON.stringify(handle);
}

export const readHandle = handleReader<MarathonHandle>('Marathon', handleSchema);
