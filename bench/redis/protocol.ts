import { z } from 'zod';

/** What the process in the client's place is asked, one JSON object a line, and what it answers. */
export const requestSchema = z.discriminatedUnion('do', [
  z.object({ do: z.literal('fill'), bytes: z.int() }),
  z.object({ do: z.literal('digest'), keys: z.int() }),
  z.object({ do: z.literal('identity') }),
  z.object({ do: z.literal('start'), perSecond: z.number() }),
  z.object({ do: z.literal('gap'), from: z.number(), to: z.number() }),
  z.object({ do: z.literal('acknowledged') }),
  z.object({ do: z.literal('lost') }),
  z.object({ do: z.literal('stop') }),
]);
export type Request = z.infer<typeof requestSchema>;

export const answerSchemas = {
  fill: z.object({ keys: z.int(), bytes: z.int() }),
  digest: z.object({ digest: z.string() }),
  identity: z.object({
    uptime_s: z.number(),
    process_id: z.int(),
    run_id: z.string(),
    used_memory_bytes: z.number(),
  }),
  start: z.object({}),
  gap: z.object({ gap_ms: z.number(), began_at: z.number(), median_ms: z.number(), reconnects: z.int() }),
  acknowledged: z.object({ acknowledged: z.int() }),
  lost: z.object({ acknowledged: z.int(), lost: z.int() }),
  stop: z.object({ acknowledged: z.int() }),
} as const;

export const envelopeSchema = z.union([z.object({ answer: z.json() }), z.object({ failed: z.string() })]);
