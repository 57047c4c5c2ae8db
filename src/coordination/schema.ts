import { z } from 'zod';
import { errorReportSchema } from '#src/telemetry/errors.ts';
import { DESTINATION_STATES, SOURCE_STATES } from './states.ts';

/** What leaves the agent about migrations: the command line, the dashboard and tests read these. */
export const techniqueSchema = z.enum(['cold']);
export const approachSchema = z.enum(['orchestrator-level']);
export const migrationIdSchema = z.string().regex(/^m-[0-9a-z]{20}$/);
export const systemNameSchema = z.string().regex(/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/);

export const migrateOptionsSchema = z.object({
  /** Keep the source's copy, stopped, instead of deleting it. */
  keepSourceStopped: z.boolean().default(false),
  /** Milliseconds for the whole migration before the commit; afterwards it finishes forward. */
  timeout_ms: z.int().min(1000).max(86_400_000).default(3_600_000),
  /** What to do with the host's paths that the service mounts. */
  bindMounts: z.enum(['refuse', 'copy', 'expect']).default('refuse'),
  /** Milliseconds that a resumed service must stay healthy before the commit. */
  healthTimeout_ms: z.int().min(0).max(600_000).default(10_000),
});
export type MigrateOptions = z.infer<typeof migrateOptionsSchema>;

export const findingSchema = z.object({
  severity: z.enum(['error', 'warning', 'info']),
  id: z.string().max(128),
  what: z.string().max(2048),
  why: z.string().max(2048),
  mend: z.string().max(2048),
});

export const checkResultSchema = z.object({
  service: z.string(),
  source: z.string(),
  destination: z.string(),
  technique: techniqueSchema,
  approach: approachSchema,
  feasible: z.boolean(),
  findings: z.array(findingSchema),
  state_bytes: z.int(),
  file_bytes: z.int(),
});
export type CheckResult = z.infer<typeof checkResultSchema>;

export const stepSchema = z.object({ name: z.string(), start_ms: z.number(), duration_ms: z.number() });

/** One migration as the journal knows it. Times are milliseconds since 1970 unless they are durations. */
export const migrationSchema = z.object({
  id: z.string(),
  role: z.enum(['source', 'destination']),
  state: z.union([z.enum(SOURCE_STATES), z.enum(DESTINATION_STATES)]),
  /** True when only an operator can go on: the peer was lost in the commit window. */
  in_doubt: z.boolean(),
  service: z.string(),
  engine: z.string(),
  source: z.string(),
  destination: z.string(),
  technique: techniqueSchema,
  approach: approachSchema,
  started_at: z.number(),
  ended_at: z.number().nullable(),
  /** From the freeze at the source to the first instruction at the destination, as the agents' clocks saw it. */
  downtime_ms: z.number().nullable(),
  total_ms: z.number().nullable(),
  bytes_on_wire: z.int(),
  state_bytes: z.int(),
  steps: z.array(stepSchema),
  error: errorReportSchema.nullable(),
});
export type Migration = z.infer<typeof migrationSchema>;

/** Everything that happens in a migration, in order; `seq` counts from 1 within it. `at` is ms since 1970. */
const eventBase = { seq: z.int(), at: z.number(), id: z.string() };
export const migrationEventSchema = z.discriminatedUnion('event', [
  z.object({ ...eventBase, event: z.literal('state'), from: z.string(), state: z.string() }),
  z.object({
    ...eventBase,
    event: z.literal('progress'),
    state: z.string(),
    what: z.string(),
    bytes: z.int(),
    total_bytes: z.int().nullable(),
    rate_bytes_s: z.number(),
  }),
  z.object({ ...eventBase, event: z.literal('finding'), finding: findingSchema }),
  z.object({ ...eventBase, event: z.literal('note'), text: z.string() }),
  z.object({ ...eventBase, event: z.literal('in_doubt'), error: errorReportSchema }),
  z.object({ ...eventBase, event: z.literal('breakpoint'), state: z.string(), point: z.string() }),
  z.object({ ...eventBase, event: z.literal('ended'), migration: migrationSchema }),
]);
export type MigrationEvent = z.infer<typeof migrationEventSchema>;
