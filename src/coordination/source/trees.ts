import { z } from 'zod';
import type { Tree } from '#src/drivers/contract.ts';
import { sendTree } from '#src/transfer/tree/index.ts';
import { progressReporter, type SagaContext } from '../context.ts';
import type { Row } from '../journal.ts';
import type { SourceMemory } from './steps.ts';

const treesSchema = z.array(z.object({ id: z.string(), path: z.string(), kind: z.enum(['plain', 'overlay-upper']) }));

export function treesOf(row: Row): Tree[] {
  return treesSchema.parse(row.data['trees'] ?? []);
}

export interface PassOptions {
  pass: number;
  /** False once the service is frozen: then nothing may change under the copy. */
  live: boolean;
  /** "dev:ino" of files that may change without their times moving. */
  alwaysDirty: Set<string>;
}

/** Copies every tree once: all of it in the first pass, what changed since in a later one. */
export async function copyTrees(
  context: SagaContext,
  row: Row,
  signal: AbortSignal,
  memory: SourceMemory,
  options: PassOptions,
): Promise<void> {
  for (const tree of treesOf(row)) {
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
      copy.stream,
      { signal, onBytes: progress.add, onWire: (bytes) => context.journal.addWire(row.id, bytes) },
    );
    const result = copy.result();
    memory.snapshots.set(tree.id, result.snapshot);
    progress.end();
  }
}
