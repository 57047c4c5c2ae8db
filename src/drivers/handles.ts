import { UmsError } from '#src/telemetry/errors.ts';
import type { z } from 'zod';

/**
 * Reads the handles of one engine, which the journal keeps as text: one that a version wrote which is not understood here
 * is refused.
 */
export function handleReader<T>(engine: string, schema: z.ZodType<T>): (text: string) => T {
  return (text) => {
    try {
      return schema.parse(JSON.parse(text));
    } catch (error) {
      throw new UmsError('UMS_E_INTERNAL', {
        message: `The journal holds a handle of ${engine} that this version cannot read`,
        fault: 'ums',
        detail: text.slice(0, 1000),
        cause: error,
      });
    }
  };
}
