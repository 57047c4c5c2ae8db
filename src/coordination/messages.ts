import { z } from 'zod';
import { hostFingerprintSchema } from '#src/checkpoint/fingerprint.ts';
import { specificationSchema } from '#src/drivers/specification.ts';
import { errorReportSchema } from '#src/telemetry/errors.ts';
import { findingSchema, migrateOptionsSchema, migrationIdSchema, systemNameSchema, techniqueSchema } from './schema.ts';
import { DESTINATION_STATES } from './states.ts';

/**
 * What the two sides of a migration say to each other (protocol version 2; docs/protocol.md). Each request is answered
 * with the state the destination is in afterwards, and each may be repeated: the answer to a repetition is the same.
 */
export const PROTOCOL = { min: 2, max: 2 } as const;

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

export type Sizes = z.infer<typeof sizesSchema>;

/** How the memory of one migration travels, settled before anything is touched. */
export const planSchema = z.object({
  technique: techniqueSchema,
  /** 'pages': our own page path and a lazy restore; 'images': CRIU's images, restored before the service runs. */
  path: z.enum(['pages', 'images']),
  /** One sentence for the user. */
  why: z.string().max(1024),
});
export type Plan = z.infer<typeof planSchema>;

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
  plan: planSchema,
});
/** Digests of image layers that the destination has, as far as they fit into an answer. */
export const LAYERS_LIMIT = 20_000;
export const reserveResponseSchema = z.object({
  needsImage: z.boolean(),
  layers: z
    .array(z.string().regex(/^sha256:[0-9a-f]{64}$/))
    .max(LAYERS_LIMIT)
    .default([]),
});

/**
 * `only_whole`: the source's host went down, so the service may run at the destination only if all of its memory is there;
 * otherwise the destination drops what it has and answers `aborted`.
 */
export const commitRequestSchema = z.object({ only_whole: z.boolean().default(false) });

/**
 * An operator chose the source's copy. `thawed`: it runs already, because the destination did not answer then. Whatever the
 * destination has is dropped; otherwise only what has not become whole.
 */
export const surrenderRequestSchema = z.object({ thawed: z.boolean().default(false) });

/** How long the destination may wait for the end of the filling before it answers. */
export const filledRequestSchema = z.object({ wait_ms: z.int().min(0).max(20_000) });

/** What the destination knows of memory that is still on its way after the commit. */
export const fillingSchema = z.object({
  /** All of it is in the processes: the source may delete its copy. */
  complete: z.boolean(),
  /** Why the rest can never come; null while it may. */
  lost: errorReportSchema.nullable(),
  faults: z.int(),
  demands: z.int(),
});
export type Filling = z.infer<typeof fillingSchema>;

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

export type Received = z.infer<typeof receivedRequestSchema>;

/** descriptors.json of the dump to come: the runtime reads it before a restore, and no secret is in it. */
export const prepareRequestSchema = z.object({ descriptors: z.string().max(65_536).optional() });

/**
 * `received` makes one request of two: each costs the frozen service a round trip. For the same reason the request comes
 * before the files are known to have arrived: the restore waits until so many `passes` of their stream were applied.
 */
export const restoreRequestSchema = z.object({
  received: receivedRequestSchema.optional(),
  passes: z.int().min(0).optional(),
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
/** All passes over all trees (docs/files.md). */
export const treesStreamSchema = z.object({ kind: z.literal('trees'), migration: migrationIdSchema });
export const pagesStreamSchema = z.object({ kind: z.literal('pages'), migration: migrationIdSchema });
/** CRIU's images on a stream that was opened before the freeze. */
export const imagesStreamSchema = z.object({ kind: z.literal('images'), migration: migrationIdSchema });
export const memoryStreamSchema = z.object({
  kind: z.literal('memory'),
  migration: migrationIdSchema,
  /** 0 is for control and demands, the others for bulk. */
  index: z.int().min(0).max(16),
});
export const criuImagesStreamSchema = z.object({ kind: z.literal('criu-images'), migration: migrationIdSchema });
