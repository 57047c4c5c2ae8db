import { z } from 'zod';
import { MAX_DOWNTIME_MS, MAX_ROUNDS, onStallSchema, type Technique, techniqueSchema } from '#src/decision/index.ts';
import { hostEngineSchema } from '#src/drivers/specification.ts';
import { errorReportSchema } from '#src/telemetry/errors.ts';
import { DESTINATION_STATES, SOURCE_STATES } from './states.ts';

/** What leaves the agent about migrations: the command line, the dashboard and tests read these. */
export { type Technique, techniqueSchema };
export const approachSchema = z.enum(['orchestrator-level', 'container-level', 'service-level']);
export type Approach = z.infer<typeof approachSchema>;
export const migrationIdSchema = z.string().regex(/^m-[0-9a-z]{20}$/);
export const systemNameSchema = z.string().regex(/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/);

export const migrateOptionsSchema = z.object({
  /** Keep the source's copy, stopped, instead of deleting it. */
  keepSourceStopped: z.boolean().default(false),
  /** Milliseconds for the whole migration before the commit; afterwards it finishes forward. */
  timeout_ms: z.int().min(1000).max(86_400_000).default(3_600_000),
  /** What to do with the host's paths that the service mounts. */
  bindMounts: z.enum(['refuse', 'copy', 'expect']).default('refuse'),
  /** Volumes that both systems mount from the same storage: they are not copied. */
  sharedVolumes: z.array(z.string().min(1).max(512)).max(64).default([]),
  /** Milliseconds that a resumed service must stay healthy before the commit. */
  healthTimeout_ms: z.int().min(0).max(600_000).default(10_000),
  /** When memory travels; 'auto' lets the agent choose from what it measures. */
  technique: z.enum(['auto', ...techniqueSchema.options]).default('auto'),
  /** How much authority over the two systems it takes; 'auto' lets the agent choose from what it finds. */
  approach: z.enum(['auto', ...approachSchema.options]).default('auto'),
  /** Milliseconds of downtime that rounds of copying try to get below. */
  maxDowntime_ms: z.int().min(1).max(3_600_000).default(MAX_DOWNTIME_MS),
  /** Rounds of copying while the service runs, at most. */
  maxRounds: z.int().min(1).max(100).default(MAX_ROUNDS),
  /** What to do when rounds of copying do not get the downtime below the limit. */
  onStall: onStallSchema.default('throttle'),
  /** Bytes a second that memory may take of the link; 0 is no limit. */
  rateLimit_bytes_s: z.int().min(0).max(1e12).default(0),
  /** The engine that shall have it at the destination, when it is another one. */
  engine: hostEngineSchema.optional(),
});
export type MigrateOptions = z.infer<typeof migrateOptionsSchema>;

export const findingSchema = z.object({
  severity: z.enum(['error', 'warning', 'info']),
  id: z.string().max(128),
  what: z.string().max(2048),
  why: z.string().max(2048),
  mend: z.string().max(2048),
});

/** One technique as the check shows it; durations and bytes are predicted. */
export const techniqueRowSchema = z.object({
  technique: techniqueSchema,
  feasible: z.boolean(),
  note: z.string(),
  /** After the hand-over it needs both systems until all memory has arrived. */
  dependent: z.boolean(),
  downtime_ms: z.number().nullable(),
  total_ms: z.number().nullable(),
  bytes: z.number().nullable(),
  degraded_ms: z.number().nullable(),
});
export type TechniqueRow = z.infer<typeof techniqueRowSchema>;

export const checkResultSchema = z.object({
  service: z.string(),
  source: z.string(),
  destination: z.string(),
  /** Null where it is chosen by others, later: by the agents in two capsules. */
  technique: techniqueSchema.nullable(),
  approach: approachSchema,
  feasible: z.boolean(),
  findings: z.array(findingSchema),
  state_bytes: z.int(),
  file_bytes: z.int(),
  /** Why this technique, in one sentence. */
  why: z.string(),
  /** What each technique is predicted to take, or why it is not possible. */
  techniques: z.array(techniqueRowSchema),
});
export type CheckResult = z.infer<typeof checkResultSchema>;

/** One round of copying memory while the service runs, and what is expected of a freeze after it. */
export const roundSchema = z.object({
  round: z.int(),
  elapsed_ms: z.number(),
  present_bytes: z.int(),
  changed_bytes: z.int(),
  wire_bytes: z.int(),
  /** Of what changed: left to be sent after the move, because everything was ready for that. */
  left_bytes: z.int().default(0),
  link_bytes_s: z.number(),
  dirty_bytes_s: z.number(),
  predicted_downtime_ms: z.number(),
  predicted_total_ms: z.number(),
  decision: z.string(),
  why: z.string(),
});
export type Round = z.infer<typeof roundSchema>;

/** How a service's memory travelled. Bytes are of memory unless they are called wire. */
export const memoryReportSchema = z.object({
  /** 'pages': our own page path and a lazy restore; 'images': CRIU's images, all restored before the service runs. */
  path: z.enum(['pages', 'images']),
  tracker: z.enum(['written', 'soft-dirty', 'hash', 'none']),
  rounds: z.int(),
  raw_bytes: z.int(),
  zero_bytes: z.int(),
  reference_bytes: z.int(),
  wire_bytes: z.int(),
  /** Milliseconds from the first instruction at the destination until all memory was there; null before. */
  filling_ms: z.number().nullable(),
  /** Pages that a process had to wait for, and how many of those had to come from the source. */
  faults: z.int(),
  demands: z.int(),
});
export type MemoryReport = z.infer<typeof memoryReportSchema>;

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
  memory: memoryReportSchema.nullable(),
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
  z.object({ ...eventBase, event: z.literal('round'), ...roundSchema.shape }),
  z.object({ ...eventBase, event: z.literal('finding'), finding: findingSchema }),
  z.object({ ...eventBase, event: z.literal('note'), text: z.string() }),
  z.object({ ...eventBase, event: z.literal('in_doubt'), error: errorReportSchema }),
  z.object({ ...eventBase, event: z.literal('breakpoint'), state: z.string(), point: z.string() }),
  z.object({ ...eventBase, event: z.literal('ended'), migration: migrationSchema }),
]);
export type MigrationEvent = z.infer<typeof migrationEventSchema>;
