import { z } from 'zod';

/** `runc list -f json` and `runc state`; null stands for no containers. */
export const listSchema = z
  .array(
    z.object({
      id: z.string(),
      pid: z.number(),
      status: z.string(),
      bundle: z.string(),
      created: z.string(),
      annotations: z.record(z.string(), z.string()).nullish(),
    }),
  )
  .nullish()
  .transform((list) => list ?? []);
export type Listed = z.infer<typeof listSchema>[number];

export const stateSchema = z.object({ id: z.string(), pid: z.number(), status: z.string(), bundle: z.string() });
export type RuncState = z.infer<typeof stateSchema>;

/** What ums reads of a bundle's config.json; the file itself travels to the byte. */
export const configSchema = z.object({
  root: z.object({ path: z.string().min(1), readonly: z.boolean().default(false) }),
  hostname: z.string().default(''),
  process: z.object({
    terminal: z.boolean().default(false),
    args: z.array(z.string()).default([]),
    env: z.array(z.string()).default([]),
    cwd: z.string().default('/'),
    user: z.object({ uid: z.number().default(0), gid: z.number().default(0) }).prefault({}),
    noNewPrivileges: z.boolean().default(false),
  }),
  mounts: z
    .array(
      z.object({
        destination: z.string(),
        type: z.string().default(''),
        source: z.string().default(''),
        options: z.array(z.string()).default([]),
      }),
    )
    .default([]),
  annotations: z.record(z.string(), z.string()).default({}),
  linux: z
    .object({
      namespaces: z.array(z.object({ type: z.string(), path: z.string().optional() })).default([]),
      sysctl: z.record(z.string(), z.string()).default({}),
      devices: z.array(z.object({ path: z.string() })).default([]),
    })
    .prefault({}),
});
export type Config = z.infer<typeof configSchema>;

/** fd 0, 1 and 2 of the first process as runc saw them at the dump; a pipe is `pipe:[inode]`. */
export const descriptorsSchema = z.array(z.string());

export const handleSchema = z.object({
  v: z.literal(1),
  engine: z.literal('runc'),
  id: z.string().min(1),
  bundle: z.string().startsWith('/'),
  /** The migration whose `create` made the bundle. */
  key: z.string().optional(),
});
export type RuncHandle = z.infer<typeof handleSchema>;

export const createRecordSchema = z.object({
  v: z.literal(1),
  id: z.string(),
  bundle: z.string(),
  rootfs: z.string(),
  /** Directories above the bundle and the root file system that were not there before, outermost first. */
  madeParents: z.array(z.string()),
  copiedDirectories: z.array(z.string()),
  madeDirectories: z.array(z.string()),
});
export type CreateRecord = z.infer<typeof createRecordSchema>;

/** The handle of a bundle that no migration made. */
export function bundleHandle(id: string, bundle: string): string {
  return JSON.stringify({ v: 1, engine: 'runc', id, bundle } satisfies RuncHandle);
}
