import { connect } from 'node:net';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { z } from 'zod';
import { UmsError } from '#src/telemetry/errors.ts';

const POLL_MS = 5;
const ANSWER_CHARACTERS_MAX = 4096;
const ASK_LIMIT_MS = 10_000;

/** Asks the init (init.pl says what it can be asked) and returns the words of its answer. */
export function ask(runDir: string, words: readonly string[], timeout_ms = ASK_LIMIT_MS): Promise<string[]> {
  const path = join(runDir, 'init.sock');
  return new Promise((resolve, reject) => {
    const fail = (why: string, cause?: unknown) => reject(silent(why, cause));
    const socket = connect({ path, allowHalfOpen: true });
    let answer = '';
    const timer = setTimeout(() => {
      socket.destroy();
      fail(`nothing after ${timeout_ms} ms`);
    }, timeout_ms);
    socket.setEncoding('utf8');
    socket.on('data', (text: string) => {
      answer = (answer + text).slice(0, ANSWER_CHARACTERS_MAX);
    });
    socket.on('error', (error) => {
      clearTimeout(timer);
      fail(error.message, error);
    });
    socket.on('end', () => {
      clearTimeout(timer);
      socket.end();
      const [first = '', ...rest] = answer.split(' ');
      if (first === '' || first === 'failed' || first === 'refused') fail(answer === '' ? 'it said nothing' : answer);
      else resolve([first, ...rest]);
    });
    socket.end(words.join('\0'));
  });
}

function silent(why: string, cause?: unknown): UmsError {
  return new UmsError('UMS_E_ENGINE', {
    message: `The container's init did not do what it was asked: ${why}`,
    fault: 'ums',
    mend: 'Its process 1 must be the init of a migratable image (docs/service-level.md).',
    ...(cause === undefined ? {} : { cause }),
  });
}

const seenSchema = z.tuple([
  z.literal('service'),
  z.coerce.number().int().min(0),
  z.enum(['-', 'here', 'held', 'away']),
  z.coerce.number().int().min(0),
]);

/** What the init says of its service (init.pl). */
export interface Seen {
  /** Its first process; 0 when there is none. */
  pid: number;
  place: '-' | 'here' | 'held' | 'away';
  /** A CRIU is under way, perhaps one that was asked for by an agent which has ended since. */
  isBusy: boolean;
}

export async function seenBy(runDir: string): Promise<Seen> {
  const answer = await ask(runDir, ['service']);
  const parsed = seenSchema.safeParse(answer);
  if (!parsed.success) throw silent(`it said ${answer.join(' ')}`, parsed.error);
  const [, pid, place, runs] = parsed.data;
  return { pid, place, isBusy: runs > 0 };
}

/** The same when no CRIU is under way any more; one that an agent began goes on without it. */
export async function seenIdle(runDir: string, limit_ms: number): Promise<Seen> {
  const end = performance.now() + limit_ms;
  for (;;) {
    const seen = await seenBy(runDir);
    if (!seen.isBusy) return seen;
    if (performance.now() > end) {
      throw new UmsError('UMS_E_TIMEOUT', { message: 'CRIU does not end in this container', fault: 'ums' });
    }
    await wait(POLL_MS);
  }
}
