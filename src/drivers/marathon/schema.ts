import { z } from 'zod';
import { nullableList } from '../oci/answers.ts';

/** What ums reads of Marathon's answers; everything else is left alone. */
export const infoSchema = z.object({ version: z.string() });
export type Info = z.infer<typeof infoSchema>;

/** Of an app: names of groups and its own, as Marathon allows them. */
export const idSchema = z.string().regex(/^(?:\/[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)+$/);

const taskSchema = z.object({
  id: z.string(),
  host: z.string(),
  state: z.string().default(''),
  stagedAt: z.string().nullish(),
});
export type Task = z.infer<typeof taskSchema>;

/** Field, operator and value; Marathon answers with a list of them, and takes both. */
const constraintSchema = z.array(z.string());

export const appSchema = z.object({
  id: idSchema,
  instances: z.int().min(0),
  /** When somebody changed or scaled it last. */
  version: z.iso.datetime(),
  container: z.object({ type: z.string().default(''), docker: z.object({ image: z.string() }).nullish() }).nullish(),
  constraints: nullableList(constraintSchema),
  tasks: nullableList(taskSchema),
  lastTaskFailure: z.object({ message: z.string().default(''), state: z.string().default('') }).nullish(),
});
export type App = z.infer<typeof appSchema>;

export const appsSchema = z.object({ apps: z.array(appSchema) });
export const oneAppSchema = z.object({ app: appSchema });
export const changedSchema = z.object({ version: z.iso.datetime() });
export const versionsSchema = z.object({ versions: z.array(z.iso.datetime()) });
