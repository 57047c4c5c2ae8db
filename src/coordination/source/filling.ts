import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { toUmsError, UmsError } from '#src/telemetry/errors.ts';
import { bootMark } from '../boot.ts';
import type { SagaContext } from '../context.ts';
import type { Row } from '../journal.ts';
import { answerSchema, filledRequestSchema, type Filling, fillingSchema } from '../messages.ts';
import { planOf } from '../plan.ts';
import type { MemoryReport } from '../schema.ts';
import { MovingMemory } from './moving-memory.ts';
import type { SourceMemory, SourceStep } from './steps.ts';

/** How long the destination keeps a question open for the answer that all is there. */
const ANSWER_WITHIN_MS = 5000;
const ASK_AGAIN_MS = 250;
/** Longer than the destination keeps a question open. */
const ANSWER_TIMEOUT_MS = 30_000;
/** Ending a service and starting it again, by its engine. */
const BEGIN_TIMEOUT_MS = 150_000;

/**
 * The service runs at the destination, and memory follows: what was not sent before the commit from here, everything
 * from the destination's own store into the processes. Until that has ended the copy here stays, frozen.
 */
export const filling: SourceStep = {
  async run(context, row, signal, memory) {
    if (planOf(row).path === 'images') return 'removing';
    const began_ms = performance.now();
    for (;;) {
      signal.throwIfAborted();
      if ((await chosenByOperator(context, row)) === 'back') return 'aborting';
      const answer = await look(context, row, signal, memory).catch((error: unknown) => {
        signal.throwIfAborted();
        return toUmsError(error);
      });
      if (answer === 'surrendered') return 'aborting';
      if (answer instanceof UmsError) doubt(context, row, answer);
      else if (answer.complete) {
        record(context, row, memory, answer, performance.now() - began_ms);
        return 'removing';
      } else if (answer.lost !== null) doubt(context, row, UmsError.fromReport(answer.lost));
      else settleDoubt(context, row);
      // An answer that came at once says that asking again at once is of no use.
      await sleep(ASK_AGAIN_MS, undefined, { signal });
    }
  },
};

/** Keeps the memory moving and asks how far it is. */
async function look(
  context: SagaContext,
  row: Row,
  signal: AbortSignal,
  memory: SourceMemory,
): Promise<Filling | 'surrendered'> {
  const failed = memory.moving?.failure();
  if (failed !== undefined) {
    await memory.moving?.close();
    memory.moving = undefined;
    throw failed;
  }
  if (memory.moving === undefined) {
    // This agent was restarted: the destination may have everything already, and then nothing here is needed.
    const now = await ask(context, row, signal, 0);
    if (now.complete) return now;
    if (row.data['boot'] !== (await bootMark())) return await beginAnew(context, row, now);
    if (now.lost !== null) return now;
    memory.moving = await MovingMemory.withTracker(context, row, memory, (opening) =>
      MovingMemory.open(context, row, signal, { opening }),
    );
    await memory.moving.resume(join(context.stagingRoot, row.id, 'images'));
  }
  memory.moving.handedOver();
  return await ask(context, row, signal, ANSWER_WITHIN_MS);
}

/**
 * This host went down, and with it went what had not arrived: nothing can complete the copy at the destination, and there
 * is none here to go back to. The files there are the newest that there are.
 */
async function beginAnew(context: SagaContext, row: Row, now: Filling): Promise<Filling | 'surrendered'> {
  const { state, error } = await context.peers.request(row.destination, {
    method: 'POST',
    path: `/peer/v1/migrations/${row.id}/begin-anew`,
    schema: answerSchema,
    timeout_ms: BEGIN_TIMEOUT_MS,
  });
  // An operator had chosen the copy here, and the destination has dropped its own.
  if (state === 'aborted') return 'surrendered';
  if (state !== 'settling' && state !== 'done') throw gone(row, state);
  context.journal.update(row.id, { in_doubt: false, error });
  return { ...now, complete: true, lost: null };
}

function gone(row: Row, state: string): UmsError {
  return new UmsError('UMS_E_MEMORY_LOST', {
    message: `${row.destination} cannot begin ${row.service} anew yet: it is ${state} there.`,
    fault: 'destination',
  });
}

function ask(context: SagaContext, row: Row, signal: AbortSignal, wait_ms: number): Promise<Filling> {
  return context.peers.request(row.destination, {
    method: 'POST',
    path: `/peer/v1/migrations/${row.id}/filled`,
    body: filledRequestSchema.parse({ wait_ms }),
    schema: fillingSchema,
    timeout_ms: ANSWER_TIMEOUT_MS,
    signal,
  });
}

/** An operator's choice is carried out here, so that it cannot cross with an answer that all memory has arrived. */
async function chosenByOperator(context: SagaContext, row: Row): Promise<'on' | 'back'> {
  const { data } = context.journal.get(row.id);
  if (data['operator'] !== 'thaw-source') return 'on';
  const rebooted = row.data['boot'] !== (await bootMark());
  if (rebooted || (await context.driver(row.engine).state(row.handle)) !== 'frozen') {
    // The copy here is gone (its host went down): the other one must not be given up for it.
    context.journal.merge(row.id, { operator: null });
    context.journal.emit(row.id, {
      event: 'note',
      text: `There is no frozen copy on ${row.source} any more to go back to.`,
    });
    return 'on';
  }
  const answer = await context.peers
    .request(row.destination, {
      method: 'POST',
      path: `/peer/v1/migrations/${row.id}/surrender`,
      schema: answerSchema,
      timeout_ms: ANSWER_TIMEOUT_MS,
    })
    .catch((error: unknown) => toUmsError(error));
  // A destination that does not answer is the operator's word: it is off, or will never run the service.
  if (answer instanceof UmsError || answer.state === 'aborted') {
    context.journal.update(row.id, { error: wentBack(row).toReport() });
    return 'back';
  }
  context.journal.merge(row.id, { operator: null });
  context.journal.emit(row.id, {
    event: 'note',
    text: `${row.destination} has everything by now and keeps the service.`,
  });
  return 'on';
}

function wentBack(row: Row): UmsError {
  return new UmsError('UMS_E_MEMORY_LOST', {
    message: `${row.service} went back to the copy that was frozen on ${row.source}.`,
    fault: 'user',
    state: `It runs on ${row.source} from where it was frozen; what it did at ${row.destination} since is lost.`,
    mend: 'Look at the link and at the destination before you try again.',
  });
}

function record(context: SagaContext, row: Row, memory: SourceMemory, answer: Filling, filling_ms: number): void {
  settleDoubt(context, row);
  if (memory.moving === undefined) return;
  const report: MemoryReport = {
    ...memory.moving.report(),
    faults: answer.faults,
    demands: answer.demands,
    filling_ms,
  };
  const { link_bytes_s } = memory.moving.stats();
  context.journal.merge(row.id, { memory: { ...report }, link_bytes_s });
  context.journal.update(row.id, { state_bytes: report.raw_bytes });
}

function doubt(context: SagaContext, row: Row, cause: UmsError): void {
  const error = new UmsError('UMS_E_MEMORY_LOST', {
    message: `Memory of ${row.service} does not reach ${row.destination}: ${cause.message}`,
    fault: cause.fault,
    state: `${row.service} is paused on ${row.destination} or waits for memory there; the copy on ${row.source} is frozen as it was when it left. ums keeps trying and goes on by itself when it can.`,
    mend: `Best: bring the link or ${row.destination} back. Otherwise: ums recover ${row.id} --thaw-source goes back to the frozen copy; what ${row.service} did since at ${row.destination} is lost then.`,
  });
  const { in_doubt, error: told } = context.journal.get(row.id);
  // The reason may change, for instance from a link that is down to memory that is lost for good.
  if (in_doubt && told?.message === error.message) return;
  context.journal.update(row.id, { in_doubt: true, error: error.toReport() });
  context.journal.emit(row.id, { event: 'in_doubt', error: error.toReport() });
}

function settleDoubt(context: SagaContext, row: Row): void {
  if (!context.journal.get(row.id).in_doubt) return;
  context.journal.update(row.id, { in_doubt: false, error: null });
  context.journal.emit(row.id, { event: 'note', text: `${row.destination} gets the memory of ${row.service} again.` });
}
