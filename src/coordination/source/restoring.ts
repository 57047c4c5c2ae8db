import { UmsError } from '#src/telemetry/errors.ts';
import { type SagaContext, timed } from '../context.ts';
import type { Row } from '../journal.ts';
import { answerSchema, restoreRequestSchema } from '../messages.ts';
import { bootMark } from '../boot.ts';
import { planOf, runsEarly } from '../plan.ts';
import { checkpointRequest } from './checkpoint-request.ts';
import type { SourceMemory, SourceStep } from './steps.ts';
import { untilAnswered } from './until-answered.ts';

const RESTORE_TIMEOUT_MS = 600_000;

/** The destination makes every process from the images; none of them runs an instruction before the commit. */
export const restoring: SourceStep = {
  async run(context, row, signal, memory) {
    const request = {
      method: 'POST',
      path: `/peer/v1/migrations/${row.id}/restore`,
      body: restoreRequestSchema.parse({ received: memory.received, passes: memory.files?.passes }),
      schema: answerSchema,
      timeout_ms: RESTORE_TIMEOUT_MS,
    } as const;
    // A host that went down has lost the memory of the service, and all of it is at the destination (or it says so):
    // then there is nothing to go back to, and waiting for the destination is right.
    const onlyThere = row.data['boot'] !== (await bootMark());
    const after = context.driver(row.engine).afterCheckpoint(row.handle);
    const failed = new AbortController();
    const either = AbortSignal.any([signal, failed.signal]);
    const asking = onlyThere
      ? untilAnswered(context, row, either, request, ['UMS_E_MIGRATION_STATE', 'UMS_E_MIGRATION_UNKNOWN'])
      : context.peers.request(row.destination, { ...request, signal: either });
    const travelling = travels(context, row, signal, memory, after.ended);
    // A restore may wait for memory that cannot come any more.
    travelling.catch((error: unknown) => failed.abort(error));
    const answer = await asking.catch(async (error: unknown) => {
      // What went wrong with the memory or the files is the better reason.
      if (failed.signal.aborted) await travelling;
      await memory.files?.done;
      throw error;
    });
    if (answer.state === 'restored') {
      await Promise.all([memory.files?.done, travelling, timed(context, row.id, 'holds', after.holds)]);
      if (!onlyThere) await requireFrozen(context, row);
      return 'committing';
    }
    // The destination may only know that the files ended; why they did, this side knows.
    if (answer.error === null || answer.error.code === 'UMS_E_TRANSFER') await memory.files?.done;
    if (answer.error !== null) throw UmsError.fromReport(answer.error);
    throw new UmsError('UMS_E_RESTORE', {
      message: `The destination could not restore the service (it is ${answer.state} there).`,
      fault: 'destination',
    });
  },
};

/**
 * What of the memory goes on while the destination restores, and must have ended before the commit: where the service runs
 * before all of it is there, finding what still has to travel; otherwise the last of it arrives.
 */
async function travels(
  context: SagaContext,
  row: Row,
  signal: AbortSignal,
  { moving }: SourceMemory,
  dumped: Promise<void>,
): Promise<void> {
  if (moving === undefined) return;
  if (!runsEarly(planOf(row).technique)) return await timed(context, row.id, 'arrive', moving.complete(signal));
  const { imagesDir } = checkpointRequest(context, row);
  moving.findAndSeal(imagesDir, dumped, (finding) => timed(context, row.id, 'find', finding));
  await moving.found();
}

/**
 * The last look before the commit. Somebody may have let the service run again through its engine: then it has gone on,
 * and the copy must not run beside it. Or removed it: then nobody wants it to come back elsewhere.
 */
async function requireFrozen(context: SagaContext, row: Row): Promise<void> {
  const state = await context.driver(row.engine).state(row.handle);
  if (state === 'frozen') return;
  if (state === 'running') {
    throw new UmsError('UMS_E_ENGINE', {
      message: `${row.service} was let run again on ${row.source} while it was being moved.`,
      fault: 'user',
      state: `${row.service} runs on ${row.source}; what had arrived at ${row.destination} is removed.`,
      mend: 'Leave its engine alone until the migration has ended, and try again.',
    });
  }
  throw new UmsError('UMS_E_SERVICE_GONE', {
    message: `${row.service} is ${state}: it ended or was removed while it was being moved.`,
    fault: 'service',
    state: `Nothing of it is left on ${row.destination}.`,
    mend: 'Start it again, if it is still wanted, and look at its log.',
  });
}
