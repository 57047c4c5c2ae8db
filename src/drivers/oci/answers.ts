import { UmsError } from '#src/telemetry/errors.ts';
import { z } from 'zod';

/** Engines written in Go answer null where a list or a map is empty. */
export const nullableList = <T extends z.ZodType>(item: T) =>
  z
    .array(item)
    .nullish()
    .transform((list) => list ?? []);
export const nullableRecord = <T extends z.ZodType>(value: T) =>
  z
    .record(z.string(), value)
    .nullish()
    .transform((record) => record ?? {});

/** An answer that the engine gives whatever it has. */
export function required<T>(answer: T | undefined): T {
  if (answer === undefined) throw new Error('an answer that cannot be absent is');
  return answer;
}

/** An answer beyond this is none of an engine that works. */
const ANSWER_LIMIT_BYTES = 64 * 1024 * 1024;

/** The whole of an answer; one that does not end is left where it is. */
export async function readText(body: AsyncIterable<unknown>, path: string, name: string): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of body) {
    if (!Buffer.isBuffer(chunk)) continue;
    chunks.push(chunk);
    bytes += chunk.length;
    if (bytes > ANSWER_LIMIT_BYTES) {
      throw new UmsError('UMS_E_ENGINE', { message: `${name}'s answer to ${path} is too long`, fault: 'ums' });
    }
  }
  return Buffer.concat(chunks).toString('utf8');
}

const refusalSchema = z.object({ message: z.string() });

/** The engine's own sentence in its refusal, or the beginning of whatever came instead. */
export function messageIn(text: string): string {
  try {
    return refusalSchema.parse(JSON.parse(text)).message;
  } catch {
    return text.slice(0, 500).trim() || 'no reason given';
  }
}

/** Whose answer is read, from which version on it is known, and the command that tells its version. */
export interface Answerer {
  name: string;
  supported: string;
  version: string;
}

export function parseAnswer<T>(schema: z.ZodType<T>, text: string, path: string, answerer: Answerer): T {
  try {
    return schema.parse(JSON.parse(text));
  } catch (error) {
    throw new UmsError('UMS_E_ENGINE', {
      message: `${answerer.name}'s answer to ${path} is not what this version of ums knows`,
      fault: 'ums',
      mend: `${answerer.supported} supported; please report this with the output of \`${answerer.version}\`.`,
      detail: error instanceof Error ? error.message : String(error),
      cause: error,
    });
  }
}
