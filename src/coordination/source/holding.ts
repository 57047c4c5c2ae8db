import type { SourceStep } from './steps.ts';

/** From here on clients wait at the Frontman, and `ums stop`, `start` and `rm` on the service are refused (by its lock). */
export const holding: SourceStep = {
  async run(context, row) {
    await context.traffic.hold(row.service_uid, row.id);
    return 'freezing';
  },
};
