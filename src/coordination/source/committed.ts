import { UmsError } from '#src/telemetry/errors.ts';
import { answerSchema } from '../messages.ts';
import { untilAnswered } from './until-answered.ts';
import type { SourceStep } from './steps.ts';

/**
 * The destination runs the service. Before traffic goes there and the source's copy is given up, it confirms once more
 * that it still does: a host that died in between takes nothing with it, because the source still holds everything.
 */
export const committed: SourceStep = {
  async run(context, row, signal) {
    const answer = await untilAnswered(context, row, signal, {
      method: 'POST',
      path: `/peer/v1/migrations/${row.id}/settle`,
      schema: answerSchema,
      timeout_ms: 30_000,
    });
    if (answer.state === 'settling' || answer.state === 'done') return 'redirecting';
    if (answer.state !== 'aborted') return 'committed';
    throw answer.error === null
      ? new UmsError('UMS_E_HOST_LOST', {
          message: `${row.destination} lost the service before it was handed over.`,
          fault: 'destination',
        })
      : UmsError.fromReport(answer.error);
  },
};
