import { setTimeout as sleep } from 'node:timers/promises';
import type { ErrorCode } from '#src/telemetry/error-codes.ts';
import { toUmsError } from '#src/telemetry/errors.ts';
import type { SagaContext } from '../context.ts';
import type { Row } from '../journal.ts';
import type { PeerRequest } from '../ports.ts';

const PAUSE_MS_MIN = 250;
const PAUSE_MS_MAX = 10_000;

/**
 * Asks a peer again and again until it answers: from the commit on only its answer decides, and no failure to get one
 * (not even a peer that claims to know nothing) may be taken for it.
 */
export async function untilAnswered<T>(
  context: SagaContext,
  row: Row,
  signal: AbortSignal,
  request: Omit<PeerRequest<T>, 'signal'>,
  /** Codes that are an answer after all. */
  answers: readonly ErrorCode[] = [],
): Promise<T> {
  let pause_ms = PAUSE_MS_MIN;
  for (;;) {
    signal.throwIfAborted();
    try {
      return await context.peers.request(row.destination, { ...request, signal });
    } catch (error) {
      const failure = toUmsError(error);
      signal.throwIfAborted();
      if (answers.includes(failure.code)) throw failure;
      context.log.warn({ migration: row.id, code: failure.code, why: failure.message }, 'peer silent, asking again');
    }
    await sleep(pause_ms, undefined, { signal });
    pause_ms = Math.min(pause_ms * 2, PAUSE_MS_MAX);
  }
}
