import { z } from 'zod';
import { nullableList } from '../oci/answers.ts';

/** What ums reads of Nomad's answers; everything else is left alone. */
/** Nomad fills all of its ids by chance: most are no UUIDs of a version. */
const idSchema = z.string().regex(/^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);

export const selfSchema = z.object({
  config: z.object({
    /** A text before Nomad 0.6. */
    Version: z.union([z.string(), z.object({ Version: z.string() }).transform(({ Version }) => Version)]),
  }),
  stats: z.object({
    /** Absent for an agent that is a server alone, and so runs nothing. */
    client: z.object({ node_id: idSchema }).optional(),
  }),
});
export type Self = z.infer<typeof selfSchema>;

export const nodeSchema = z.object({ ID: idSchema, Datacenter: z.string(), NodePool: z.string().optional() });
export type Node = z.infer<typeof nodeSchema>;

const taskSchema = z.looseObject({
  Name: z.string(),
  Driver: z.string(),
  Config: z.record(z.string(), z.unknown()).nullish(),
});

/** A job goes back to Nomad as it came, but for what is changed, so nothing of it is left out or made of another kind. */
export const jobSchema = z.looseObject({
  ID: z.string(),
  Namespace: z.string(),
  Type: z.string(),
  Stop: z.boolean().nullish(),
  /** Billionths of a second since 1970. */
  SubmitTime: z.number().nullish(),
  JobModifyIndex: z.int().min(0),
  TaskGroups: z
    .array(z.looseObject({ Name: z.string(), Count: z.int(), Tasks: z.array(taskSchema).max(1000).nullish() }))
    .max(1000)
    .nullish(),
});
export type Job = z.infer<typeof jobSchema>;

export const allocationSchema = z.object({
  ID: idSchema,
  Namespace: z.string(),
  JobID: z.string(),
  NodeID: z.string(),
  NodeName: z.string().default(''),
  ClientStatus: z.string(),
  ClientDescription: z.string().nullish(),
  /** Grows from each to the next. */
  CreateIndex: z.number(),
  TaskStates: z
    .record(z.string(), z.object({ Events: nullableList(z.object({ DisplayMessage: z.string().default('') })) }))
    .nullish(),
});
export type Allocation = z.infer<typeof allocationSchema>;
export const allocationsSchema = nullableList(allocationSchema);
