import { z } from 'zod';

export const handleSchema = z.object({
  v: z.literal(1),
  engine: z.literal('init'),
  name: z.string().max(255),
  /** The migration that it was made for; a service that was started here has none. */
  key: z.string().max(128).optional(),
});
export type InitHandle = z.infer<typeof handleSchema>;

const id = z.int().min(1).max(4_194_304);

/** What a restore must know beside CRIU's images. It comes from a peer. */
export const descriptorsSchema = z.object({
  v: z.literal(1),
  /** Where standard input, output and error lead, as /proc/PID/fd says: `pipe:[INODE]`, or a path. */
  stdio: z.array(z.string().max(4096)).length(3),
  /** Its first process. */
  pid: id,
  /** Every thread's id: all must be free where it is restored. */
  ids: z.array(id).max(1_000_000),
  /** Processes that the service itself had stopped. */
  stopped: z.array(id).max(100_000),
});
export type Descriptors = z.infer<typeof descriptorsSchema>;

/** Written before processes are stopped, and gone when they run again. */
export const frozenSchema = z.object({
  v: z.literal(1),
  how: z.enum(['frozen', 'restored']),
  stopped: z.array(id).max(100_000),
});
export type Frozen = z.infer<typeof frozenSchema>;
