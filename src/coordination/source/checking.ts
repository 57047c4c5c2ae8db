import { z } from 'zod';
import { UmsError } from '#src/telemetry/errors.ts';
import { looksOf, predictionOf } from '../forecast.ts';
import { makePlan } from '../plan.ts';
import { movingTrees, preflight } from '../preflight.ts';
import { sharedPaths } from '../shared-storage.ts';
import type { SourceStep } from './steps.ts';

/** Pre-flight: everything that can be known without touching the service. An error finding ends the migration here. */
export const checking: SourceStep = {
  async run(context, row, signal) {
    // By its id: a name may be another's by now, or be known to two engines.
    const service = `${row.engine}:${row.engine_id}`;
    const result = await preflight(context, service, row.destination, row.options, row.id, signal);
    for (const finding of result.findings) {
      if (finding.severity !== 'info') context.journal.emit(row.id, { event: 'finding', finding });
    }
    const blocking = result.findings.find((finding) => finding.severity === 'error');
    if (blocking !== undefined) {
      throw new UmsError(result.blockingCode, {
        message: blocking.what,
        fault: 'user',
        mend: blocking.mend,
        detail: result.findings.map((finding) => `${finding.severity}: ${finding.what} (${finding.why})`).join('\n'),
      });
    }
    const plan = makePlan(row.options, result.sizes, result.choice, result.notLazy);
    const chosen = row.options.technique === 'auto';
    const prediction = predictionOf(context, result.forecast, result.choice, plan.technique, chosen);
    context.journal.emit(row.id, { event: 'note', text: plan.why });
    context.journal.update(row.id, {
      handle: result.description.handle,
      specification: JSON.stringify(result.description.specification),
    });
    context.journal.merge(row.id, {
      sizes: result.sizes,
      plan,
      looks: looksOf(result.forecast.sample).map((look) => ({ ...look })),
      ...(prediction === undefined ? {} : { prediction: z.json().parse(prediction) }),
      sharedPaths: await sharedPaths(result.description),
      trees: movingTrees(result.description).map((tree) => ({ ...tree })),
    });
    return 'reserving';
  },
};
