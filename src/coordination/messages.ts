import { z } from 'zod';
import { hostFingerprintSchema } from '#src/checkpoint/fingerprint.ts';
import { specificationSchema } from '#src/drivers/specification.ts';
import { errorReportSchema } from '#src/telemetry/errors.ts';
import { findingSchema, migrateOptionsSchema, migrationIdSchema, systemNameSchema } from './schema.ts';
import { DESTINATION_STATES } from './states.ts';

/**
 * What the two sides of a migration say to each other (protocol version 1; docs/protocol.md). Each request is answered
 * with the state the destination is in afterwards, and each may be repeated: the answer to a repetition is the same.
 */
export const PROTOCOL = { min: 1, max: 1 } as const;

export const helloSchema = z.object({
  name: systemNameSchema,
  version: z.string().max(64),
  protocol: z.object({ min: z.int(), max: z.int() }),
  fingerprint: hostFingerprintSchema,
  engines: z
    .array(
      z.object({
        engine: z.string().max(32),
        available: z.boolean(),
        version: z.string().max(256),
        runtime: z.string().max(256),
        problem: z.string().max(2048).optional(),
        mend: z.string().max(2048).optional(),
      }),
    )
    .max(32),
});
export type Hello = z.infer<typeof helloSchema>;

export const sizesSchema = z.object({
  state_bytes: z.int().min(0),
  file_bytes: z.int().min(0),
  image_bytes: z.int().min(0),
});

export const peerCheckRequestSchema = z.object({
  specification: specificationSchema,
  fingerprint: hostFingerprintSchema,
  sizes: sizesSchema,
});
export const peerCheckResponseSchema = z.object({ findings: z.array(findingSchema).max(512), needsImage: z.boolean() });

export const reserveRequestSchema = z.object({
  id: migrationIdSchema,
  protocol: z.literal(1),
  serviceUid: z.string().min(1).max(64),
  specification: specificationSchema,
  fingerprint: hostFingerprintSchema,
  sizes: sizesSchema,
  options: migrateOptionsSchema,
});
export const reserveResponseSchema = z.object({ needsImage: z.boolean() });

const destinationStateSchema = z.enum(DESTINATION_STATES);

export const createResponseSchema = z.object({
  state: destinationStateSchema,
  trees: z.array(z.string().max(4200)).max(1024),
});

/** What the health check at the destination may rely on: seen at the source when it was frozen. */
export const receivedRequestSchema = z.object({
  listening: z.array(z.int().min(1).max(65_535)).max(4096),
  processes: z.int().min(1).max(1_000_000),
});

export const answerSchema = z.object({
  state: destinationStateSchema,
  /** Milliseconds the step took at the destination, from its own monotonic clock. */
  elapsed_ms: z.number().min(0),
  /** Milliseconds from the request's arrival until the service ran; 0 where nothing was resumed. */
  resumed_after_ms: z.number().min(0),
  error: errorReportSchema.nullable(),
});
export type Answer = z.infer<typeof answerSchema>;

/** Headers of the data streams of a migration. */
export const imageStreamSchema = z.object({ kind: z.literal('engine-image'), migration: migrationIdSchema });
export const treeStreamSchema = z.object({
  kind: z.literal('tree'),
  migration: migrationIdSchema,
  tree: z.string().max(4200),
  pass: z.int().min(1).max(64),
});
export const pagesStreamSchema = z.object({ kind: z.literal('pages'), migration: migrationIdSchema });
export const criuImagesStreamSchema = z.object({ kind: z.literal('criu-images'), migration: migrationIdSchema });
