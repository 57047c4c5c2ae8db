import { z } from 'zod';
import { handleReader } from '../handles.ts';

/**
 * Where the output of a container's task goes, which belongs to the task and not to the container: nowhere, into pipes that
 * somebody may attach to, or to where a URI says (a file, or a program that is given it).
 */
export const stdioSchema = z.discriminatedUnion('kind', [
  z.object({ kind: z.literal('null') }),
  z.object({ kind: z.literal('fifo'), stdin: z.boolean() }),
  z.object({ kind: z.literal('uri'), uri: z.string().max(4096) }),
]);
export type Stdio = z.infer<typeof stdioSchema>;

/** What the driver must know of a container between calls and restarts; everything else is asked of containerd. */
const handleSchema = z.object({
  v: z.literal(1),
  engine: z.literal('containerd'),
  namespace: z.string(),
  /** containerd knows a container by this alone; it is the name that its maker gave it. */
  id: z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/),
  /** When containerd made its record: a later one of the same name is another container. */
  created: z.string(),
  /** The runtime's `--root`. */
  root: z.string().startsWith('/'),
  snapshotter: z.string(),
  snapshotKey: z.string(),
  stdio: stdioSchema,
  /** It has a network namespace of its own, with nothing but a loopback interface. */
  ownNetwork: z.boolean(),
  /** The migration whose `create` made it; absent for a service that a person made. */
  key: z.string().optional(),
});
export type ContainerdHandle = z.infer<typeof handleSchema>;

export function writeHandle(handle: ContainerdHandle): string {
  return JSON.stringify(handle);
}

export const readHandle = handleReader<ContainerdHandle>('containerd', handleSchema);
