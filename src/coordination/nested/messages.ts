import { z } from 'zod';
import { findingSchema, migrationIdSchema, systemNameSchema } from '../schema.ts';

/** What two systems say to each other about a capsule that shall receive a service (docs/protocol.md). */
export const receiveRequestSchema = z.object({
  id: migrationIdSchema,
  /** Of the outer container, here as there. */
  name: z.string().regex(/^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}$/),
  engine: z.string().min(1).max(32),
  /** That the capsule has where the service is now: a process that has one cannot be restored without it. */
  capabilities: z.array(z.string().max(64)).max(64),
  /** Of the service, published by the outer container; those of the capsule's agent are not among them. */
  ports: z
    .array(
      z.object({
        host: z.int().min(1).max(65_535),
        inside: z.int().min(1).max(65_535),
        protocol: z.enum(['tcp', 'udp', 'sctp']),
      }),
    )
    .max(4096),
});
export type ReceiveRequest = z.infer<typeof receiveRequestSchema>;

export const receiveFindingsSchema = z.object({ findings: z.array(findingSchema).max(512) });
/** A capsule that waits, and the token with which the one that has the service pairs with it, once. */
export const receiveResponseSchema = z.object({ system: systemNameSchema, token: z.string().max(8192) });
/**
 * 'empty': there is no service, and no capsule that was made for this migration any more; 'busy': one is on its way in;
 * 'occupied': it lives there, and its capsule stays.
 */
export const dropResponseSchema = z.object({ capsule: z.enum(['empty', 'busy', 'occupied']) });
export type Receiver = z.infer<typeof dropResponseSchema>['capsule'];
/** The service lives in the capsule now: a Frontman's traffic finds it by this name. */
export const arrivedRequestSchema = receiveRequestSchema.extend({ serviceUid: z.string().min(1).max(64) });
export const arrivedResponseSchema = z.object({});
