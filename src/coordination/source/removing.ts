import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { whatItTaught } from '../forecast.ts';
import { specificationOf } from '../context.ts';
import { answerSchema } from '../messages.ts';
import { sharedVolumes } from '../shared-storage.ts';
import { untilAnswered } from './until-answered.ts';
import type { SourceStep } from './steps.ts';

/** The destination has confirmed a healthy running service, so the source's copy goes; or stays, stopped, if asked to. */
export const removing: SourceStep = {
  async run(context, row, signal, memory) {
    await memory.moving?.close(true);
    const driver = context.driver(row.engine);
    if (row.options.keepSourceStopped) await driver.discard(row.handle);
    else await driver.remove(row.handle, { volumes: true, keep: sharedVolumes(specificationOf(row)) });
    await rm(join(context.stagingRoot, row.id), { recursive: true, force: true });
    context.journal.merge(row.id, { observed: { ...whatItTaught(context, row) } });
    await untilAnswered(context, row, signal, {
      method: 'POST',
      path: `/peer/v1/migrations/${row.id}/finish`,
      schema: answerSchema,
      timeout_ms: 30_000,
    });
    return 'done';
  },
};
