import { z } from 'zod';
import {
  checkResultSchema,
  migrateOptionsSchema,
  migrationSchema,
  systemNameSchema,
  techniqueSchema,
} from '#src/coordination/schema.ts';
import { errorReportSchema } from '#src/telemetry/errors.ts';

/**
 * The local API: HTTP over the agent's unix socket (mode 0600, so only its owner speaks to it). The command line is one
 * client; anything else may be another. Errors are `{error: ErrorReport}` with a 4xx or 5xx status.
 *
 *   GET    /v1/system                          systemSchema
 *   GET    /v1/systems                         pairedSystemSchema[]
 *   POST   /v1/pairing/invite                  inviteRequest → inviteResponse
 *   POST   /v1/pairing/join                    joinRequest → pairedSystem
 *   POST   /v1/systems/:name/rotate            → pairedSystem
 *   DELETE /v1/systems/:name                   revoke → {}
 *   GET    /v1/services                        serviceSchema[]
 *   GET    /v1/services/:ref                   serviceDetailSchema        (:ref is NAME, ID or ENGINE:NAME)
 *   POST   /v1/services/:ref/stop|start|remove → {}                       (refused while it is being moved)
 *   POST   /v1/check                           checkRequest → checkResult
 *   POST   /v1/migrations                      migrateRequest → migration
 *   GET    /v1/migrations                      migration[]
 *   GET    /v1/migrations/:id                  migration
 *   GET    /v1/migrations/:id/events?after=SEQ newline-delimited migrationEvent, live until `ended`
 *   POST   /v1/migrations/:id/cancel           → migration
 *   POST   /v1/migrations/:id/recover          recoverRequest → migration
 *   GET    /v1/predictions                     predictionErrorsSchema[]
 *   GET    /v1/frontmen                        frontmanSchema[]
 *   POST   /v1/frontmen                        frontmanRequest → frontman
 *   DELETE /v1/frontmen/:id                    → {}
 *   GET    /metrics                            Prometheus text
 * With fault injection switched on at the agent's start only:
 *   POST   /v1/debug/breakpoints               {role, state, point: 'before'|'after', service?} → {}; the saga halts there
 *   POST   /v1/debug/breakpoints/clear         the same, or no body for all of them → {}; the saga goes on
 */
export const errorBodySchema = z.object({ error: errorReportSchema });

export const engineInfoSchema = z.object({
  engine: z.string(),
  available: z.boolean(),
  version: z.string(),
  runtime: z.string(),
  problem: z.string().optional(),
  mend: z.string().optional(),
});
export const systemSchema = z.object({
  name: z.string(),
  version: z.string(),
  protocol: z.object({ min: z.int(), max: z.int() }),
  peer_address: z.string(),
  peer_port: z.int(),
  kernel: z.string(),
  criu: z.object({ version: z.string(), works: z.boolean(), problem: z.string().optional() }),
  engines: z.array(engineInfoSchema),
  pid: z.int(),
  started_at: z.number(),
});
export type System = z.infer<typeof systemSchema>;

export const pairedSystemSchema = z.object({
  name: z.string(),
  address: z.string(),
  port: z.int(),
  status: z.enum(['reachable', 'unreachable', 'revoked', 'expired']),
  /** Milliseconds since 1970 at which the certificate that the other side issued to us ends. */
  certificate_expires_at: z.number(),
  paired_at: z.number(),
  rtt_ms: z.number().nullable(),
  problem: z.string().nullable(),
});
export type PairedSystem = z.infer<typeof pairedSystemSchema>;

export const inviteRequestSchema = z.object({ ttl_s: z.int().min(1).max(86_400).default(900) });
export const inviteResponseSchema = z.object({ token: z.string(), expires_at: z.number() });
export const joinRequestSchema = z.object({ token: z.string().max(8192) });

export const serviceSchema = z.object({
  engine: z.string(),
  id: z.string(),
  name: z.string(),
  state: z.enum(['absent', 'created', 'running', 'frozen', 'restored', 'stopped']),
  image: z.string(),
  pid: z.int(),
  ports: z.array(z.string()),
  created_at: z.string(),
  /** Id of the migration that holds it now. */
  migration: z.string().nullable(),
});
export type Service = z.infer<typeof serviceSchema>;
export const serviceDetailSchema = serviceSchema.extend({
  specification: z.record(z.string(), z.json()),
  memory_bytes: z.int(),
  trees: z.array(z.object({ id: z.string(), path: z.string(), kind: z.string() })),
  losses: z.array(z.string()),
});
export type ServiceDetail = z.infer<typeof serviceDetailSchema>;

export const checkRequestSchema = z.object({
  service: z.string().min(1).max(512),
  to: systemNameSchema,
  options: migrateOptionsSchema.prefault({}),
});
export { checkResultSchema };
export const migrateRequestSchema = checkRequestSchema;
export { migrationSchema };
const errorStatisticsSchema = z.object({ count: z.int(), median: z.number(), p90: z.number(), bias: z.number() });
/** How far predictions were off, by technique; errors are relative: 0.25 is a quarter. */
export const predictionErrorsSchema = z.object({
  technique: techniqueSchema,
  migrations: z.int(),
  downtime: errorStatisticsSchema.nullable(),
  total: errorStatisticsSchema.nullable(),
  bytes: errorStatisticsSchema.nullable(),
});
export type PredictionErrors = z.infer<typeof predictionErrorsSchema>;
/** thaw-source: run here again (two copies if the peer did commit). drop-source: give it up here (none if it did not). */
export const recoverRequestSchema = z.object({ choice: z.enum(['thaw-source', 'drop-source']) });

export const frontmanRequestSchema = z.object({
  service: z.string().min(1).max(512),
  /** Address and port on this host that clients use and keep using. */
  listen: z.object({ address: z.string().max(64), port: z.int().min(1).max(65_535) }),
  /** Port inside the service. */
  port: z.int().min(1).max(65_535),
  mode: z.enum(['tcp', 'http']).default('tcp'),
  /** Milliseconds that a connection or request waits while the service is away, before it is refused. */
  holdLimit_ms: z.int().min(0).max(600_000).default(30_000),
});
export const frontmanSchema = z.object({
  id: z.string(),
  service: z.string(),
  listen: z.object({ address: z.string(), port: z.int() }),
  port: z.int(),
  mode: z.enum(['tcp', 'http']),
  holdLimit_ms: z.int(),
  /** open: passes traffic; holding: traffic waits. */
  status: z.enum(['open', 'holding']),
  /** 'here' or the name of the system the service is on. */
  target: z.string(),
  connections: z.int(),
  waiting: z.int(),
});
export type Frontman = z.infer<typeof frontmanSchema>;
