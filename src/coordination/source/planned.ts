import type { SourceStep } from './steps.ts';

/** The row and the lock exist; nothing has been looked at yet. */
export const planned: SourceStep = {
  run: () => Promise.resolve('checking'),
};
