import type { Snapshot } from '#src/transfer/tree/index.ts';
import type { SagaContext } from '../context.ts';
import type { Row } from '../journal.ts';
import type { SourceState } from '../states.ts';

/**
 * What a running saga knows and a crash may forget: an agent that restarts before the commit goes back, so the
 * snapshots of the first pass over the files need not survive it.
 */
export interface SourceMemory {
  snapshots: Map<string, Snapshot>;
  /** performance.now() when the freeze was asked for. */
  frozenSince_ms: number | undefined;
}

/**
 * One step of the source's saga: what is done while a migration is in the state of the same name. It returns the state
 * to go to. Each step is idempotent: after a crash it may run again from its beginning.
 */
export interface SourceStep {
  run(context: SagaContext, row: Row, signal: AbortSignal, memory: SourceMemory): Promise<SourceState>;
}
