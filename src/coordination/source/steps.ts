import type { Duplex } from 'node:stream';
import type { SagaContext } from '../context.ts';
import type { EarlyPreflight } from '../early-preflight.ts';
import type { Row } from '../journal.ts';
import type { Received } from '../messages.ts';
import type { SourceState } from '../states.ts';
import type { MovingMemory } from './moving-memory.ts';
import type { TreeRounds } from './tree-rounds.ts';

/**
 * What a running saga knows and a crash may forget: an agent that restarts before the commit goes back, so what
 * was seen of the files need not survive it.
 */
export interface SourceMemory {
  /** A pre-flight that has begun; undefined after a restart of this agent. */
  early: EarlyPreflight | undefined;
  /** Looks at the service for a while and writes down what the migration will take; once, however often it is asked. */
  predict: () => Promise<void>;
  /** The destination makes the container while memory is copied already; undefined where that waits for it. */
  created: Promise<void> | undefined;
  /** The files on their way, from the first round to the last. */
  trees: TreeRounds | undefined;
  /** performance.now() when the freeze was asked for. */
  frozenSince_ms: number | undefined;
  /** What the destination is told with the request to restore; undefined after a restart of this agent. */
  received: Received | undefined;
  /** The last round of the files, which the commit waits for, and how many passes there are with it. */
  files: { done: Promise<unknown>; passes: number } | undefined;
  /** The dump was prepared, and its directories are in use. */
  prepared: boolean;
  /** A stream for CRIU's images, opened before the freeze. */
  images: Duplex | undefined;
  /** The service's memory on its way; undefined where it travels as CRIU's images, and before it moves. */
  moving: MovingMemory | undefined;
}

/**
 * One step of the source's saga: what is done while a migration is in the state of the same name. It returns the state
 * to go to. Each step is idempotent: after a crash it may run again from its beginning.
 */
export interface SourceStep {
  run(context: SagaContext, row: Row, signal: AbortSignal, memory: SourceMemory): Promise<SourceState>;
}
