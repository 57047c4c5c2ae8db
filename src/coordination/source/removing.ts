import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { allOf } from '../all-of.ts';
import { whatItTaught } from '../forecast.ts';
import { specificationOf } from '../context.ts';
import { answerSchema } from '../messages.ts';
import { isNested, removingNested } from '../nested/source.ts';
import { volumesOf } from '../shared-storage.ts';
import { untilAnswered } from './until-answered.ts';
import type { SourceStep } from './steps.ts';

/** The destination has confirmed a healthy running service, so the source's copy goes; or stays, stopped, if asked to. */
export const removing: SourceStep = {
  async run(context, row, signal, memory) {
    if (isNested(row)) return await removingNested(context, row);
    const driver = context.driver(row.engine);
    const { moved, shared } = volumesOf(specificationOf(row));
    const removed = row.options.keepSourceStopped
      ? driver.discard(row.handle, { goneTo: row.destination })
      : driver.remove(row.handle, { volumes: true, keep: shared, described: moved, goneTo: row.destination });
    // None of them has to wait for another, and each has ended before the next step or try.
    const staging = rm(join(context.stagingRoot, row.id), { recursive: true, force: true });
    await allOf([removed, memory.moving?.close(true), staging]);
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
