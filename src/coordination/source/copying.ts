import type { SourceStep } from './steps.ts';
import { copyTrees } from './trees.ts';

/** First pass over the files, while the service runs. Whatever changes meanwhile is sent again when it is frozen. */
export const copying: SourceStep = {
  async run(context, row, signal, memory) {
    await copyTrees(context, row, signal, memory, { pass: 1, live: true, alwaysDirty: new Set() });
    return 'holding';
  },
};
