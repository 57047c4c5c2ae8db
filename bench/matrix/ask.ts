import { run } from '#src/cli/program.ts';
import { processIo } from '#src/cli/terminal.ts';
import { z } from 'zod';
import { ERROR_CODES, isErrorCode } from '#src/telemetry/error-codes.ts';
import type { Asked } from '../moves.ts';

/** What ums itself answered to one request to migrate: the last line that it prints as JSON. */
const resultSchema = z.object({
  event: z.literal('result'),
  status: z.string(),
  downtime_ms: z.number().nullish(),
  total_ms: z.number().nullish(),
  approach: z.string().optional(),
  error: z.object({ code: z.string(), message: z.string(), mend: z.string().nullish() }).optional(),
});

export interface Answer {
  status: 'done' | 'refused' | 'failed';
  code: string | null;
  reason: string | null;
  mend: string | null;
  agents: { downtime_ms: number | null; total_ms: number | null };
  /** Milliseconds since 1970 between which the command ran. */
  from: number;
  to: number;
}

/** Exit statuses of a command that says no before it has touched anything (docs/errors.md). */
const REFUSALS = [3, 4];

export function answerOf(output: string, times: { from: number; to: number }): Answer {
  const line = output.trim().split('\n').at(-1) ?? '';
  const parsed = resultSchema.safeParse(jsonOf(line));
  const none = { downtime_ms: null, total_ms: null };
  if (!parsed.success) {
    return {
      status: 'failed',
      code: null,
      reason: `no result: ${line.slice(0, 500)}`,
      mend: null,
      agents: none,
      ...times,
    };
  }
  const { status, error, downtime_ms, total_ms } = parsed.data;
  return {
    status: status === 'done' ? 'done' : error !== undefined && isRefusal(error.code) ? 'refused' : 'failed',
    code: error?.code ?? null,
    reason: error?.message ?? (status === 'done' ? null : `it ended as ${status}`),
    mend: error?.mend ?? null,
    agents: { downtime_ms: downtime_ms ?? null, total_ms: total_ms ?? null },
    ...times,
  };
}

function isRefusal(code: string): boolean {
  return isErrorCode(code) && REFUSALS.includes(ERROR_CODES[code].exit);
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    // What is no JSON is no result, which is what its reader will say.
    return undefined;
  }
}

/** Asks an agent, with the command line as a person does. */
export async function ask(agent: Asked, words: readonly string[]): Promise<Answer> {
  let written = '';
  const io = {
    ...processIo(),
    env: { ...process.env, ...agent.env },
    out: (text: string) => void (written += text),
    err: (text: string) => void (written += text),
  };
  const from = Date.now();
  await run([...agent.words, '--json', 'migrate', ...words], io);
  return answerOf(written, { from, to: Date.now() });
}
