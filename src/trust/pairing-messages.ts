import { z } from 'zod';
import { errorReportSchema } from '#src/telemetry/errors.ts';
import { pemSchema, peerNameSchema } from './trust.ts';

/**
 * Pairing, in five messages over a TLS connection to the inviting system, whose authority the token names:
 *
 *   joining → inviting   hello       secret, name, address, own authority, request for a certificate
 *   inviting → joining   offer       certificate, own authority, own request
 *   joining → inviting   answer      certificate
 *   inviting → joining   done        the inviting side has recorded the pairing, unconfirmed
 *   joining → inviting   committed   the joining side has recorded it; so the inviting side confirms it
 *
 * In place of any of them the inviting side may send {error}. When the last message is lost, the first connection
 * that the joining side makes with its certificate confirms the pairing.
 */
export const helloSchema = z.object({
  version: z.literal(1),
  secret: z.string().max(64),
  name: peerNameSchema,
  address: z.string().min(1).max(255),
  port: z.int().min(1).max(65_535),
  authority_pem: pemSchema,
  request_pem: pemSchema,
});
export type Hello = z.infer<typeof helloSchema>;

const refusalSchema = z.object({ error: errorReportSchema });

export const offerSchema = z.union([
  refusalSchema,
  z.object({
    port: z.int().min(1).max(65_535),
    certificate_pem: pemSchema,
    authority_pem: pemSchema,
    request_pem: pemSchema,
  }),
]);
export const answerSchema = z.object({ certificate_pem: pemSchema });
export const doneSchema = z.union([refusalSchema, z.object({ done: z.literal(true) })]);
export const committedSchema = z.object({ committed: z.literal(true) });
