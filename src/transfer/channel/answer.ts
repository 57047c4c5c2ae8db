import { z } from 'zod';
import { errorReportSchema } from '#src/telemetry/errors.ts';

/** The receiver's side of a stream says this after the header, and, with a trailer, after a one-way body. */
export const answerSchema = z.union([
  z.object({ error: errorReportSchema }),
  z.object({ ok: z.literal(true), trailer: z.unknown().optional() }),
]);
