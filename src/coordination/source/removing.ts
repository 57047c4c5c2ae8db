import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { answerSchema } from '../messages.ts';
import { untilAnswered } from './until-answered.ts';
import type { SourceStep } from './steps.ts';

/** The destination has confirmed a healthy running service, so the source's copy goes; or stays, stopped, if asked to. */
export const removing: SourceStep = {
  async run(context, row, signal) {
    const driver = context.driver(row.engine);
    if (row.options.keepSourceStopped) await driver.discard(row.handle);
    else await driver.remove(row.handle, { volumes: true });
    await rm(join(context.stagingRoot, row.id), { recursive: true, force: true });
    await untilAnswered(context, row, signal, {
      method: 'POST',
      path: `/peer/v1/migrations/${row.id}/finish`,
      schema: answerSchema,
      timeout_ms: 30_000,
    });
    return 'done';
  },
};
