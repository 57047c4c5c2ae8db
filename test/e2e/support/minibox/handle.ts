import { z } from 'zod';
import { handleReader } from '#src/drivers/handles.ts';

/** The engine's own id of a box: another box of the same name, made later, has another. */
const idSchema = z.uuid();
const nameSchema = z.string().regex(/^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,254}$/);

const handleSchema = z.object({
  v: z.literal(1),
  engine: z.literal('x-minibox'),
  id: idSchema,
  name: nameSchema,
  /** The migration whose `create` made it; absent for a box that a person made. */
  key: z.string().max(128).optional(),
});
export type MiniboxHandle = z.infer<typeof handleSchema>;

/** What a `create` is about to make. */
export const createRecordSchema = z.object({ v: z.literal(1), id: idSchema, name: nameSchema });
export type CreateRecord = z.infer<typeof createRecordSchema>;

export function writeHandle(box: { id: string; name: string }, key?: string): string {
  const handle: MiniboxHandle = { v: 1, engine: 'x-minibox', id: box.id, name: box.name };
  return JSON.stringify(key === undefined ? handle : { ...handle, key });
}

export const readHandle = handleReader<MiniboxHandle>('minibox', handleSchema);
