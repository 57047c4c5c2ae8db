import { toUmsError } from '#src/telemetry/errors.ts';
import type { SagaContext } from '../context.ts';
import type { Row } from '../journal.ts';
import { isNested, tellReceiver } from '../nested/source.ts';
import { answerSchema, surrenderRequestSchema } from '../messages.ts';

const ANSWER_TIMEOUT_MS = 5000;

/**
 * Tells the destination of a migration that went back what that means for it. True when it need not be told again. Where an
 * operator chose the copy here without a word from the destination, it may run the service: then only its answer that it
 * has dropped its copy will do.
 */
export async function tellPeer(context: SagaContext, row: Row): Promise<boolean> {
  if (isNested(row)) return await tellReceiver(context, row);
  const overruled = row.data['operator'] === 'thaw-source';
  try {
    const { state } = await context.peers.request(row.destination, {
      method: 'POST',
      path: `/peer/v1/migrations/${row.id}/${overruled ? 'surrender' : 'give-up'}`,
      ...(overruled ? { body: surrenderRequestSchema.parse({ thawed: true }) } : {}),
      schema: answerSchema,
      timeout_ms: ANSWER_TIMEOUT_MS,
    });
    return !overruled || state === 'aborted';
  } catch (error) {
    const failure = toUmsError(error);
    // It never heard of this migration, so it has nothing to drop.
    if (failure.code === 'UMS_E_MIGRATION_UNKNOWN') return true;
    context.log.debug({ migration: row.id, code: failure.code }, 'the destination does not answer');
    return false;
  }
}
