import { z } from 'zod';
import { UmsError } from '#src/telemetry/errors.ts';
import type { SagaContext } from '../context.ts';
import { looksOf, predictionOf } from '../forecast.ts';
import type { Row } from '../journal.ts';
import { checkingNested, isNested } from '../nested/source.ts';
import { askedFor, chosenFor, makePlan } from '../plan.ts';
import { findService, type Forecast, movingTrees, type Preflight, preflight } from '../preflight.ts';
import type { Technique } from '../schema.ts';
import { sharedPaths } from '../shared-storage.ts';
import type { SourceStep } from './steps.ts';

/** Pre-flight: everything that can be known without touching the service. An error finding ends the migration here. */
export const checking: SourceStep = {
  async run(context, row, signal, memory) {
    if (isNested(row)) return await checkingNested(context, row, signal);
    const result = await (memory.early?.result(signal) ?? lookAgain(context, row, signal));
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
    // What a technique that was asked for will take need not be known before it begins.
    let forecast: Forecast | undefined;
    let wanted = askedFor(row.options);
    if (wanted === undefined) {
      forecast = await result.forecast();
      wanted = chosenFor(forecast.choice);
    }
    const plan = makePlan(wanted, result.sizes, result.notLazy);
    const predict = async () => keepPrediction(context, row, plan.technique, forecast ?? (await result.forecast()));
    let predicted: Promise<void> | undefined;
    memory.predict = () => (predicted ??= predict());
    context.journal.emit(row.id, { event: 'note', text: plan.why });
    const { handle, specification } = result.description;
    const known = {
      sizes: result.sizes,
      plan,
      sharedPaths: await sharedPaths(result.description),
      trees: movingTrees(result.description).map((tree) => ({ ...tree })),
    };
    context.journal.jot(row.id, known, { handle, specification: JSON.stringify(specification) });
    return 'reserving';
  },
};

function lookAgain(context: SagaContext, row: Row, signal: AbortSignal): Promise<Preflight> {
  // By its id: a name may be another's by now, or be known to two engines.
  const found = findService(context, `${row.engine}:${row.engine_id}`);
  return preflight(context, found, row.destination, row.options, row.id, signal);
}

/** Kept beside what comes of it; the rounds of memory begin with these looks. */
function keepPrediction(context: SagaContext, row: Row, technique: Technique, { choice, inputs }: Forecast): void {
  const prediction = predictionOf(context, inputs, choice, technique, row.options.technique === 'auto');
  context.journal.merge(row.id, {
    looks: looksOf(inputs.sample).map((look) => ({ ...look })),
    ...(prediction === undefined ? {} : { prediction: z.json().parse(prediction) }),
  });
}
