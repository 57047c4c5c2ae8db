import type { SagaContext } from '../context.ts';
import type { Row } from '../journal.ts';
import { answerSchema, prepareRequestSchema } from '../messages.ts';
import { hasRounds, planOf } from '../plan.ts';
import { checkpointRequest, dumpsHere, makeCheckpointRequest } from './checkpoint-request.ts';
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
    const opened = opening.then((moving) => (memory.moving = moving));
    await allOf([trees.round(signal), opened]);
    // Commands of either engine on this service wait, or fail, as long as something is prepared. Under cold migration
    // that would be as long as memory travels, and what it saves would hardly show.
    const isCold = planOf(row).technique === 'cold';
    const getReady = () => allOf([settle(trees, signal), ...(isCold ? [] : [prepare(context, row, signal, memory)])]);
    if (memory.moving === undefined || !hasRounds(planOf(row).technique)) await getReady();
    else await copyInRounds(context, row, signal, memory.moving, getReady);
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

/** The rounds, and beside the end of the last one what else must be ready for the freeze. */
async function copyInRounds(
  context: SagaContext,
  row: Row,
  signal: AbortSignal,
  moving: MovingMemory,
  getReady: () => Promise<void>,
): Promise<void> {
  const { fallback } = moving;
  if (fallback !== undefined) context.journal.emit(row.id, { event: 'note', text: fallback });
  let ready: Promise<void> | undefined;
  const nearEnd = () => {
    ready = getReady();
    // It is awaited when the round has ended.
    ready.catch(() => undefined);
  };
  const again = async () => {
    await ready;
    ready = undefined;
  };
  try {
    await copyRounds(context, row, signal, moving, { nearEnd, again });
  } catch (error) {
    await Promise.allSettled([ready]);
    throw error;
  }
  await (ready ?? getReady());
}

/** The freeze is near: whatever dump and restore can do before it is done now, on both sides. */
async function prepare(context: SagaContext, row: Row, signal: AbortSignal, memory: SourceMemory): Promise<void> {
  const driver = context.driver(row.engine);
  const here = dumpsHere(row);
  const request = memory.prepared ? checkpointRequest(context, row) : await makeCheckpointRequest(context, row);
  const prepareHere = here ? driver.prepareCheckpoint(row.handle, request) : Promise.resolve();
  const prepareThere = (async () => {
    const descriptors = here ? await driver.descriptors(row.handle) : undefined;
    await context.peers.request(row.destination, {
      method: 'POST',
      path: `/peer/v1/migrations/${row.id}/prepare`,
      body: prepareRequestSchema.parse(descriptors === undefined ? {} : { descriptors }),
      schema: answerSchema,
      timeout_ms: PREPARE_TIMEOUT_MS,
      signal,
    });
  })();
  await allOf([prepareHere, prepareThere]);
  memory.prepared = here;
}

/** All have ended when this rejects with the first failure, in order, so that nothing is at work any more. */
async function allOf(works: readonly Promise<unknown>[]): Promise<void> {
  const ends = await Promise.allSettled(works);
  for (const end of ends) if (end.status === 'rejected') throw end.reason;
}
