import { UmsError } from '#src/telemetry/errors.ts';
import type { SourceStep } from './steps.ts';

/** The service stops here and, if all goes well, never runs at the source again. */
export const freezing: SourceStep = {
  async run(context, row, _signal, memory) {
    const driver = context.driver(row.engine);
    memory.frozenSince_ms = performance.now();
    try {
      await driver.freeze(row.handle);
    } catch (error) {
      // Asked only now, because the service waits for the answer.
      const state = await driver.state(row.handle);
      if (state === 'running' || state === 'frozen') throw error;
      throw new UmsError('UMS_E_SERVICE_GONE', {
        message: `${row.service} is ${state}: it ended or was removed while it was being moved.`,
        fault: 'service',
        state: `It does not run on ${row.source}; nothing of it is left on ${row.destination}.`,
        mend: 'Start it again and look at its log.',
        cause: error,
      });
    }
    return 'dumping';
  },
};
