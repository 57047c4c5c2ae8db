import { z } from 'zod';

/** What one `create` makes: a container of the same name that a person made is told apart by the command that made it. */
export const createRecordSchema = z.object({
  v: z.literal(1),
  name: z.string(),
  args: z.array(z.string()),
  madeVolumes: z.array(z.string()),
  /** Bound directories that the content is copied into, and those of them that were not there before. */
  copiedDirectories: z.array(z.string()),
  madeDirectories: z.array(z.string()),
});
export type CreateRecord = z.infer<typeof createRecordSchema>;
