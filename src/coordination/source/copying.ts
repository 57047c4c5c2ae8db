import { allOf } from '../all-of.ts';
import { type SagaContext, specificationOf } from '../context.ts';
import { greet } from '../greet.ts';
import type { Row } from '../journal.ts';
import { answerSchema, prepareRequestSchema, sizesSchema } from '../messages.ts';
import { hasRounds, planOf } from '../plan.ts';
import { checkpointRequest, dumpsHere, makeCheckpointRequest } from './checkpoint-request.ts';
import { copyRounds } from './rounds.ts';
import type { SourceMemory, SourceStep } from './steps.ts';
import { createTreeRounds, settle, type TreeRounds } from './tree-rounds.ts';

const PREPARE_TIMEOUT_MS = 120_000;

/** So few bytes of files travel beside the memory. More would make its first round longer, and so what changes in it more. */
const FEW_BYTES = 8 * 2 ** 20;

/**
 * What can be copied while the service runs: files, and memory in rounds where the technique has them. Whatever changes
 * meanwhile is sent again. Last, the destination does what it can of the restore.
 */
export const copying: SourceStep = {
  async run(context, row, cancelled, memory) {
    // Without a container at the destination nothing else is of any use.
    const failed = new AbortController();
    memory.created?.catch((error: unknown) => failed.abort(error));
    const signal = AbortSignal.any([cancelled, failed.signal]);
    const few = sizesSchema.parse(row.data['sizes']).file_bytes <= FEW_BYTES;
    const { technique, path } = planOf(row);
    // The memory of a frozen service is on its way for longer than few files need beside it.
    const later = few && technique === 'cold' && path === 'pages';
    // Where nothing travels beside it, settling is a first round as good as any.
    const ahead = !few || hasRounds(technique);
    const files = openFiles(context, row, signal, memory).then(async (trees) => {
      if (ahead) await trees.round(signal);
      return trees;
    });
    // Where memory goes first, its failure waits until somebody asks.
    files.catch(() => undefined);
    try {
      if (!few) await files;
      // Both walk through all of the memory, and the round is not to wait for the prediction.
      const predicted = looked(memory).then(() => memory.predict());
      const settled = async () => {
        const trees = await files;
        if (!later) await settle(trees, signal);
        return trees;
      };
      const getReady = () => allOf([prepare(context, row, signal, memory, settled), calm(memory)]);
      await allOf([copyMemory(context, row, signal, memory, predicted, getReady), predicted]);
    } finally {
      // Whatever failed, nothing is at work any more when this ends.
      await Promise.allSettled([files]);
    }
    // What was written while everything was prepared need not wait for the freeze.
    await memory.moving?.lastRound(signal);
    // A round may have taken minutes, after which a request needs a new connection: two and a half round trips, for which
    // the service would stand still.
    if (technique !== 'cold')
      await allOf([openImages(context, row, signal, memory), greet(context, row.destination, signal)]);
    return 'holding';
  },
};

async function openFiles(
  context: SagaContext,
  row: Row,
  signal: AbortSignal,
  memory: SourceMemory,
): Promise<TreeRounds> {
  await memory.created;
  return (memory.trees = await createTreeRounds(context, row, signal));
}

async function looked({ moving }: SourceMemory): Promise<void> {
  await moving?.looked();
}

async function calm({ moving }: SourceMemory): Promise<void> {
  await moving?.calm();
}

/**
 * Commands of either engine on this service wait, or fail, as long as something is prepared. Under cold migration that
 * would be as long as memory travels, and what it saves would hardly show; of several containers it shows.
 */
function isPrepared(row: Row): boolean {
  return planOf(row).technique !== 'cold' || specificationOf(row).containers !== undefined;
}

/** Opened now, so that the images need no handshake while the service stands still. */
async function openImages(context: SagaContext, row: Row, signal: AbortSignal, memory: SourceMemory): Promise<void> {
  const onWire = (bytes: number) => context.journal.addWire(row.id, bytes);
  const images = await context.peers.openDuplex(
    row.destination,
    { kind: 'images', migration: row.id },
    { signal, onWire },
  );
  // A peer that goes away before anything is sent is noticed by whoever speaks to it next.
  images.on('error', () => undefined);
  memory.images = images;
}

/** The rounds, if there are any, and beside the end of the last one what else must be ready for the freeze. */
async function copyMemory(
  context: SagaContext,
  row: Row,
  signal: AbortSignal,
  { moving }: SourceMemory,
  predicted: Promise<void>,
  getReady: () => Promise<void>,
): Promise<void> {
  if (moving === undefined || !hasRounds(planOf(row).technique)) return await getReady();
  const { fallback } = moving;
  if (fallback !== undefined) context.journal.emit(row.id, { event: 'note', text: fallback });
  let ready: Promise<void> | undefined;
  const nearEnd = () => (ready = getReady());
  const again = async () => {
    await ready;
    ready = undefined;
  };
  try {
    await copyRounds(context, row, signal, moving, predicted, { nearEnd, again });
    await (ready ?? getReady());
  } finally {
    await Promise.allSettled([ready]);
  }
}

/**
 * The freeze is near: the files settle, and whatever dump and restore can do before it is done now, on both sides. At the
 * destination not before the files have settled: an engine that is starting there does as it likes with their directories.
 */
async function prepare(
  context: SagaContext,
  row: Row,
  signal: AbortSignal,
  memory: SourceMemory,
  settled: () => Promise<TreeRounds>,
): Promise<void> {
  if (!isPrepared(row)) return await (await settled()).prepare(signal);
  const driver = context.driver(row.engine);
  const here = dumpsHere(row);
  const request = memory.prepared ? checkpointRequest(context, row) : await makeCheckpointRequest(context, row);
  const prepareHere = here ? driver.prepareCheckpoint(row.handle, request) : Promise.resolve();
  const prepareThere = (async () => {
    const descriptors = here ? await driver.descriptors(row.handle) : undefined;
    const trees = await settled();
    const prepared = context.peers.request(row.destination, {
      method: 'POST',
      path: `/peer/v1/migrations/${row.id}/prepare`,
      body: prepareRequestSchema.parse(descriptors === undefined ? {} : { descriptors }),
      schema: answerSchema,
      timeout_ms: PREPARE_TIMEOUT_MS,
      signal,
    });
    await allOf([prepared, trees.prepare(signal)]);
  })();
  await allOf([prepareHere, prepareThere]);
  memory.prepared = here;
}
