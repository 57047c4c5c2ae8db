import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { SagaContext } from '../context.ts';
import type { Row } from '../journal.ts';
import { answerSchema, prepareRequestSchema } from '../messages.ts';
import { hasRounds, planOf } from '../plan.ts';
import { dumpsHere, makeCheckpointRequest } from './checkpoint-request.ts';
import { MovingMemory } from './moving-memory.ts';
import { copyRounds } from './rounds.ts';
import type { SourceMemory, SourceStep } from './steps.ts';
import { createTreeRounds, settle } from './tree-rounds.ts';

const PREPARE_TIMEOUT_MS = 120_000;

/**
 * What can be copied while the service runs: files, and memory in rounds where the technique has them. Whatever changes
 * meanwhile is sent again. Last, the destination does what it can of the restore.
 */
export const copying: SourceStep = {
  async run(context, row, signal, memory) {
    const trees = (memory.trees = await createTreeRounds(context, row, signal));
    const byPages = planOf(row).path === 'pages';
    // The connections for memory are opened while the first files travel.
    const opening = byPages ? MovingMemory.open(context, row, signal) : Promise.resolve(undefined);
    const [files, opened] = await Promise.allSettled([trees.round(signal), opening]);
    if (opened.status === 'fulfilled') memory.moving = opened.value;
    if (files.status === 'rejected') throw files.reason;
    if (opened.status === 'rejected') throw opened.reason;
    if (memory.moving !== undefined) {
      if (hasRounds(planOf(row).technique)) {
        const { fallback } = memory.moving;
        if (fallback !== undefined) context.journal.emit(row.id, { event: 'note', text: fallback });
        await copyRounds(context, row, signal, memory.moving);
      }
    }
    // Commands of either engine on this service wait, or fail, as long as something is prepared. Under cold migration
    // that would be as long as memory travels, and what it saves would hardly show.
    const isCold = planOf(row).technique === 'cold';
    const preparing = isCold ? undefined : prepare(context, row, signal, memory);
    const ready = await Promise.allSettled([settle(trees, signal), preparing]);
    for (const one of ready) if (one.status === 'rejected') throw one.reason;
    // What was written while everything was prepared need not wait for the freeze.
    await memory.moving?.lastRound(signal);
    if (!isCold) {
      // Opened now, so that the images need no handshake while the service stands still.
      const onWire = (bytes: number) => context.journal.addWire(row.id, bytes);
      memory.images = await context.peers.openDuplex(
        row.destination,
        { kind: 'images', migration: row.id },
        { signal, onWire },
      );
      // A peer that goes away before anything is sent is noticed by whoever speaks to it next.
      memory.images.on('error', () => undefined);
    }
    return 'holding';
  },
};

/** The freeze is near: whatever dump and restore can do before it is done now, on both sides. */
async function prepare(context: SagaContext, row: Row, signal: AbortSignal, memory: SourceMemory): Promise<void> {
  const request = await makeCheckpointRequest(context, row);
  let descriptors: string | undefined;
  if (dumpsHere(row)) {
    await context.driver(row.engine).prepareCheckpoint(row.handle, request);
    memory.prepared = true;
    descriptors = await readFile(join(request.imagesDir, 'descriptors.json'), 'utf8').catch(absent);
  }
  await context.peers.request(row.destination, {
    method: 'POST',
    path: `/peer/v1/migrations/${row.id}/prepare`,
    body: prepareRequestSchema.parse(descriptors === undefined ? {} : { descriptors }),
    schema: answerSchema,
    timeout_ms: PREPARE_TIMEOUT_MS,
    signal,
  });
}

/** Without it nothing is prepared at the destination. */
function absent(error: unknown): undefined {
  if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined;
  throw error;
}
