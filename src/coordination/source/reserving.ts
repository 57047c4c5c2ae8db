import { createZstdCompress } from 'node:zlib';
import { z } from 'zod';
import type { DirtyTracker } from '#src/checkpoint/memory/index.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { allOf } from '../all-of.ts';
import { progressReporter, type SagaContext, specificationOf, treesOf } from '../context.ts';
import type { Row } from '../journal.ts';
import { createResponseSchema, reserveResponseSchema, sizesSchema } from '../messages.ts';
import { isNested, reservingNested } from '../nested/source.ts';
import { hasRounds, planOf } from '../plan.ts';
import type { SourceState } from '../states.ts';
import { MovingMemory } from './moving-memory.ts';
import type { SourceMemory, SourceStep } from './steps.ts';

/** The image of a large service over a slow link takes its time; the migration's own time limit ends it earlier. */
const CREATE_TIMEOUT_MS = 120_000;

/**
 * The destination makes room first: staging directory, image, volumes and the container itself. So whatever it lacks
 * shows before the service is frozen.
 */
export const reserving: SourceStep = {
  async run(context, row, signal, memory) {
    if (isNested(row)) return await reservingNested(context, row, signal);
    if (planOf(row).path !== 'pages') return await reserve(context, row, signal, memory);
    return await MovingMemory.withTracker(context, row, memory, (opening) =>
      reserve(context, row, signal, memory, opening),
    );
  },
};

async function reserve(
  context: SagaContext,
  row: Row,
  signal: AbortSignal,
  memory: SourceMemory,
  opening?: Promise<DirtyTracker>,
): Promise<SourceState> {
  const specification = specificationOf(row);
  const sizes = sizesSchema.parse(row.data['sizes']);
  const { needsImage, layers } = await context.peers.request(row.destination, {
    method: 'POST',
    path: '/peer/v1/migrations',
    body: {
      id: row.id,
      protocol: 1,
      serviceUid: row.service_uid,
      specification,
      fingerprint: await context.fingerprint(),
      sizes,
      options: row.options,
      plan: planOf(row),
    },
    schema: reserveResponseSchema,
    timeout_ms: 30_000,
    signal,
  });
  if (needsImage) {
    const driver = context.driver(row.engine);
    const progress = progressReporter(context, row.id, 'image', sizes.image_bytes);
    const pipe = createZstdCompress({ chunkSize: 1 << 18 });
    const exported = driver.exportImage(specification, pipe, signal, layers).catch((error: unknown) => {
      pipe.destroy(error instanceof Error ? error : new Error(String(error)));
      throw error;
    });
    const sent = context.peers.send(row.destination, { kind: 'engine-image', migration: row.id }, bytesOf(pipe), {
      signal,
      onBytes: progress.add,
      onWire: (bytes) => context.journal.addWire(row.id, bytes),
    });
    await Promise.all([exported, sent]);
    progress.end();
  }
  // With rounds it waits until the first has looked at the memory. Its failure is heard by whoever needs it.
  if (!hasRounds(planOf(row).technique)) memory.predict().catch(() => undefined);
  // The connections for memory are opened while the container is made.
  const creating = create(context, row, signal);
  const opened = opening === undefined ? undefined : openMemory(context, row, signal, memory, opening);
  if (opened === undefined || !hasRounds(planOf(row).technique)) await allOf([creating, opened]);
  else {
    memory.created = creating;
    // Copying hears of it at once.
    creating.catch(() => undefined);
    await opened.catch(async (error: unknown) => {
      await Promise.allSettled([creating]);
      throw error;
    });
  }
  return 'copying';
}

/** Has the destination make the container, with a place for all that will come. */
async function create(context: SagaContext, row: Row, signal: AbortSignal): Promise<void> {
  const created = await context.peers.request(row.destination, {
    method: 'POST',
    path: `/peer/v1/migrations/${row.id}/create`,
    schema: createResponseSchema,
    timeout_ms: CREATE_TIMEOUT_MS,
    signal,
  });
  const missing = treesOf(row).find((tree) => !created.trees.includes(tree.id));
  if (missing === undefined) return;
  throw new UmsError('UMS_E_SPECIFICATION', {
    message: `The destination has no place for ${missing.id} of ${row.service}.`,
    fault: 'destination',
    mend: 'Run the same version of ums and of the engine on both systems.',
  });
}

async function openMemory(
  context: SagaContext,
  row: Row,
  signal: AbortSignal,
  memory: SourceMemory,
  opening: Promise<DirtyTracker>,
): Promise<void> {
  const ahead = hasRounds(planOf(row).technique);
  memory.moving = await MovingMemory.open(context, row, signal, { ahead, opening });
}

async function* bytesOf(stream: AsyncIterable<unknown>): AsyncGenerator<Uint8Array> {
  for await (const chunk of stream) yield z.instanceof(Buffer).parse(chunk);
}
