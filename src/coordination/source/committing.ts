import { setTimeout as sleep } from 'node:timers/promises';
import { toUmsError, UmsError } from '#src/telemetry/errors.ts';
import { bootMark } from '../boot.ts';
import type { SagaContext } from '../context.ts';
import type { Row } from '../journal.ts';
import { type Answer, answerSchema, commitRequestSchema } from '../messages.ts';
import { hasRounds, planOf } from '../plan.ts';
import type { SourceStep } from './steps.ts';

const ASK_AGAIN_MS_MIN = 250;
const ASK_AGAIN_MS_MAX = 5000;

/**
 * The window. The destination is told to run the service, and from that moment only its answer decides: `active` goes
 * on, `aborted` goes back. Without an answer the source stays frozen, says so with the operator's two choices, and
 * keeps asking; when the operator cancels, it asks the destination to give up instead, which a destination that runs
 * the service already refuses by answering `active`.
 */
export const committing: SourceStep = {
  async run(context, row, signal, memory) {
    // What had not arrived, a host that went down has lost: then the service may begin to run at the destination only if all
    // of it is there.
    const only_whole = planOf(row).path === 'pages' && row.data['boot'] !== (await bootMark());
    let pause_ms = ASK_AGAIN_MS_MIN;
    for (;;) {
      signal.throwIfAborted();
      const asked_ms = performance.now();
      const giveUp = context.journal.get(row.id).cancel_requested;
      const asking = ask(context, row, giveUp ? undefined : { only_whole }, signal);
      // Once it has heard this the service runs there, and much memory need not wait for the answer. Little does, as it would
      // only be in the way.
      if (!giveUp && !hasRounds(planOf(row).technique)) void memory.moving?.releaseAfterRequest();
      const answer = await asking.catch((error: unknown) => {
        // Only the destination's own answer ends the window; whatever kept it from arriving does not.
        signal.throwIfAborted();
        reportDoubt(context, row, toUmsError(error));
        return undefined;
      });
      memory.moving?.release();
      const next = answer === undefined ? 'committing' : decide(context, row, answer, asked_ms, memory.frozenSince_ms);
      if (next === 'committed') return next;
      await sleep(pause_ms, undefined, { signal });
      pause_ms = Math.min(pause_ms * 2, ASK_AGAIN_MS_MAX);
    }
  },
};

/** Tells it to run the service, or without a word on how, to give up. */
function ask(
  context: SagaContext,
  row: Row,
  commit: { only_whole: boolean } | undefined,
  signal: AbortSignal,
): Promise<Answer> {
  return context.peers.request(row.destination, {
    method: 'POST',
    path: `/peer/v1/migrations/${row.id}/${commit === undefined ? 'give-up' : 'commit'}`,
    ...(commit === undefined ? {} : { body: commitRequestSchema.parse(commit) }),
    schema: answerSchema,
    timeout_ms: row.options.healthTimeout_ms + 30_000,
    signal,
  });
}

function decide(
  context: SagaContext,
  row: Row,
  answer: Answer,
  asked_ms: number,
  frozenSince_ms: number | undefined,
): 'committed' | 'committing' {
  if (answer.state === 'active' || answer.state === 'settling' || answer.state === 'done') {
    if (frozenSince_ms !== undefined) {
      // The service ran again when the destination had resumed it: half a round trip after the request left, plus the
      // time the destination took, both on one clock of their own, so the hosts' clocks need not agree.
      const roundTrip_ms = Math.max(performance.now() - asked_ms - answer.elapsed_ms, 0);
      const resumed_ms = asked_ms + roundTrip_ms / 2 + answer.resumed_after_ms;
      context.journal.update(row.id, { downtime_ms: resumed_ms - frozenSince_ms });
    }
    return 'committed';
  }
  // Anything but `aborted` is on its way to one of the two answers.
  if (answer.state !== 'aborted') return 'committing';
  if (answer.error !== null) throw UmsError.fromReport(answer.error);
  throw new UmsError('UMS_E_CANCELLED', {
    message: `The destination gave up before it ran the service (it is ${answer.state} there).`,
    fault: 'destination',
  });
}

function reportDoubt(context: SagaContext, row: Row, failure: UmsError): void {
  if (context.journal.get(row.id).in_doubt) return;
  const error = new UmsError('UMS_E_IN_DOUBT', {
    message: `${row.destination} was told to run ${row.service} and has not answered: ${failure.message}`,
    fault: 'network',
    state: `The copy on ${row.source} is frozen and keeps its state; ${row.destination} may or may not run its copy. ums keeps asking and goes on by itself when ${row.destination} answers.`,
    mend: `Best: bring ${row.destination} or the link back. Otherwise, if you know that ${row.destination} does not run it and never will: ums recover ${row.id} --thaw-source (two active copies if you are wrong). If you know that it runs there: ums recover ${row.id} --drop-source (the state is lost if you are wrong).`,
  });
  context.journal.update(row.id, { in_doubt: true });
  context.journal.emit(row.id, { event: 'in_doubt', error: error.toReport() });
}
