import type { SourceStep } from './steps.ts';

/** Clients that waited are let go, and from now on the Frontman passes their traffic to the destination. */
export const redirecting: SourceStep = {
  async run(context, row) {
    await context.traffic.release(row.service_uid, row.id, { kind: 'peer', peer: row.destination });
    return 'filling';
  },
};
