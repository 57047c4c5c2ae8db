import type { Tree } from '#src/drivers/contract.ts';
import { sendTree } from '#src/transfer/tree/index.ts';
import { progressReporter, type SagaContext, treesOf } from '../context.ts';
import type { Row } from '../journal.ts';
import type { SourceMemory } from './steps.ts';

export interface PassOptions {
  pass: number;
  /** False once the service is frozen: then nothing may change under the copy. */
  live: boolean;
  /** "dev:ino" of files that may change without their times moving. */
  alwaysDirty: Set<string>;
  /** Called when everything has been read here, which is before it has arrived there. */
  onRead?: () => void;
}

/** Trees that are copied at the same time: most are small, and each costs the destination a confined tar. */
const WIDTH = 4;

/** Copies every tree once: all of it in the first pass, what changed since in a later one. */
export async function copyTrees(
  context: SagaContext,
  row: Row,
  signal: AbortSignal,
  memory: SourceMemory,
  options: PassOptions,
): Promise<void> {
  const trees = treesOf(row);
  let unread = trees.length;
  if (unread === 0) options.onRead?.();
  const onTreeRead = () => {
    unread -= 1;
    if (unread === 0) options.onRead?.();
  };
  const queue = [...trees];
  const work = async () => {
    for (let tree = queue.shift(); tree !== undefined; tree = queue.shift()) {
      await copyTree(context, row, signal, memory, tree, { ...options, onRead: onTreeRead });
    }
  };
  const ends = await Promise.allSettled(Array.from({ length: WIDTH }, work));
  for (const end of ends) if (end.status === 'rejected') throw end.reason;
}

async function copyTree(
  context: SagaContext,
  row: Row,
  signal: AbortSignal,
  memory: SourceMemory,
  tree: Tree,
  options: PassOptions,
): Promise<void> {
  const progress = progressReporter(context, row.id, `files ${tree.id}`, null);
  const copy = sendTree({
    tree,
    since: memory.snapshots.get(tree.id),
    alwaysDirty: options.alwaysDirty,
    live: options.live,
    signal,
  });
  await context.peers.send(
    row.destination,
    { kind: 'tree', migration: row.id, tree: tree.id, pass: options.pass },
    tellingEnd(copy.stream, options.onRead),
    { signal, onBytes: progress.add, onWire: (bytes) => context.journal.addWire(row.id, bytes) },
  );
  memory.snapshots.set(tree.id, copy.result().snapshot);
  progress.end();
}

async function* tellingEnd(
  stream: AsyncIterable<Uint8Array>,
  onEnd: (() => void) | undefined,
): AsyncGenerator<Uint8Array> {
  yield* stream;
  onEnd?.();
}
