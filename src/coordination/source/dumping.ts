import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type { CheckpointRequest, Driver } from '#src/drivers/contract.ts';
import { toUmsError, UmsError } from '#src/telemetry/errors.ts';
import { openPageRelay } from '#src/transfer/pages/relay.ts';
import { sendImages } from '#src/transfer/pages/images.ts';
import { progressReporter, type SagaContext, timed } from '../context.ts';
import type { Row } from '../journal.ts';
import { listeningPorts } from '../listening.ts';
import { answerSchema, receivedRequestSchema, sizesSchema } from '../messages.ts';
import { planOf, runsEarly } from '../plan.ts';
import { checkpointRequest, dumpsHere, makeCheckpointRequest } from './checkpoint-request.ts';
import { followed } from './followed.ts';
import type { SourceMemory, SourceStep } from './steps.ts';
import { createTreeRounds } from './tree-rounds.ts';

const WHY_TIMEOUT_MS = 5000;

/** Memory and the last changes of the files travel side by side, while the service is frozen. */
export const dumping: SourceStep = {
  async run(context, row, signal, memory) {
    const driver = context.driver(row.engine);
    const pids = await driver.processes(row.handle);
    // Asking the kernel for its sockets takes ten milliseconds, which pass beside the dump.
    const begun = Promise.withResolvers<void>();
    const looking = begun.promise.then(() => listeningPorts(pids));
    // What it fails with counts only when both have ended that must not be left alone.
    looking.catch(() => undefined);
    await sendBoth(context, row, driver, signal, memory, pids, begun);
    const listening = await looking;
    // The destination restores beside the end of it, and `restoring` waits for the last page.
    if (memory.moving !== undefined && !runsEarly(planOf(row).technique)) {
      await followed(context, row, memory.moving, memory.moving.nearlyComplete(signal));
    }
    // Told with the request to restore, so that it costs no round trip of its own.
    memory.received = receivedRequestSchema.parse({ listening, processes: pids.length });
    return 'restoring';
  },
};

/**
 * Files and memory at the same time. The last round of the files is asked for first: what CRIU makes in the service's
 * own /tmp while it dumps is told from the service's files by what was there before. One failing ends the other, because
 * half a copy is of no use, and both have ended before a failure is told: a CRIU still at work would freeze again what
 * going back has thawed. Otherwise the files may still be on their way afterwards: the commit waits for them.
 */
async function sendBoth(
  context: SagaContext,
  row: Row,
  driver: Driver,
  signal: AbortSignal,
  memory: SourceMemory,
  pids: readonly number[],
  begun: PromiseWithResolvers<void>,
): Promise<void> {
  const failed = new AbortController();
  const either = AbortSignal.any([signal, failed.signal]);
  const stopOther = (error: unknown) => {
    failed.abort(error);
    throw error;
  };
  const trees = (memory.trees ??= await createTreeRounds(context, row, signal));
  const last = trees.final({ signal: either, pids, begun: begun.promise });
  const files = timed(context, row.id, 'files', last).catch(stopOther);
  const pages = dumpMemory(context, row, driver, either, memory, begun.resolve).catch(stopOther).finally(begun.resolve);
  const done = files.finally(() => trees.close());
  done.catch(() => undefined);
  memory.files = { done, passes: trees.passes() };
  const [dumped] = await Promise.allSettled([pages]);
  if (dumped.status === 'fulfilled') return;
  await Promise.allSettled([done]);
  throw failed.signal.reason;
}

async function dumpMemory(
  context: SagaContext,
  row: Row,
  driver: Driver,
  signal: AbortSignal,
  memory: SourceMemory,
  onBegun: () => void,
): Promise<void> {
  const request = memory.prepared ? checkpointRequest(context, row) : await makeCheckpointRequest(context, row);
  const { imagesDir } = request;
  const { state_bytes } = sizesSchema.parse(row.data['sizes']);
  const progress = progressReporter(context, row.id, 'memory', state_bytes);
  let pageBytes = 0;
  const { moving } = memory;
  const early = runsEarly(planOf(row).technique);
  await moving?.frozen();
  // Where the service waits for its memory, that is found before the dump, and travels beside it.
  if (moving !== undefined && !early) {
    moving.release();
    await timed(context, row.id, 'find', moving.find());
  }
  if (dumpsHere(row)) {
    await timed(context, row.id, 'dump', driver.checkpoint(row.handle, { ...request, onBegun })).catch(
      async (error: unknown) => {
        throw (await explain(driver, row)) ?? error;
      },
    );
    // Where the service runs early, the rest of that is done while the destination restores.
    if (early) await moving?.sendFirst(imagesDir);
    else await moving?.seal(imagesDir);
  } else {
    pageBytes = await dumpThroughRelay(context, row, driver, { ...request, onBegun }, signal, progress.add);
  }
  signal.throwIfAborted();
  if (memory.images !== undefined) {
    // Not waited for: the request to restore follows at once, and the destination waits for the images itself.
    void pipeline(Readable.from(sendImages(imagesDir)), memory.images, { signal }).catch((error: unknown) => {
      context.log.warn({ migration: row.id, err: error }, 'the images could not be sent');
    });
    return;
  }
  const sent = await context.peers.send(
    row.destination,
    { kind: 'criu-images', migration: row.id },
    sendImages(imagesDir),
    {
      signal,
      onBytes: progress.add,
      onWire: (bytes) => context.journal.addWire(row.id, bytes),
    },
  );
  progress.end();
  context.journal.update(row.id, { state_bytes: pageBytes + sent.bytes });
}

/** Dumps while the memory pages are already on their way; returns how many bytes of them there were. */
async function dumpThroughRelay(
  context: SagaContext,
  row: Row,
  driver: Driver,
  request: CheckpointRequest,
  signal: AbortSignal,
  onBytes: (bytes: number) => void,
): Promise<number> {
  let pageBytes = 0;
  const onWire = (bytes: number) => context.journal.addWire(row.id, bytes);
  const stream = await context.peers.openDuplex(
    row.destination,
    { kind: 'pages', migration: row.id },
    { signal, onWire },
  );
  const relay = await openPageRelay(stream, (bytes) => {
    pageBytes += bytes;
    onBytes(bytes);
  });
  // CRIU is never killed while it dumps: taking away its page server makes it put the processes back and fail.
  const takeAway = () => relay.close();
  signal.addEventListener('abort', takeAway);
  try {
    await driver.checkpoint(row.handle, { ...request, pageServer: { address: relay.address, port: relay.port } });
  } catch (error) {
    signal.throwIfAborted();
    const broken = relay.failure();
    const gone = await explain(driver, row);
    if (gone !== undefined) throw gone;
    throw broken === undefined || CRIU_REFUSES.test(toUmsError(error).detail ?? '')
      ? error
      : await whyBroken(context, row, broken, signal);
  } finally {
    signal.removeEventListener('abort', takeAway);
    relay.close();
  }
  return pageBytes;
}

/** A dump that failed because the service is no longer there is not CRIU's fault. */
async function explain(driver: Driver, row: Row): Promise<UmsError | undefined> {
  const state = await driver.state(row.handle);
  if (state === 'frozen' || state === 'running') return undefined;
  return new UmsError('UMS_E_SERVICE_GONE', {
    message: `${row.service} is ${state}: it ended or was removed during the dump.`,
    fault: 'service',
    state: `It does not run on ${row.source}; nothing of it is left on ${row.destination}.`,
    mend: 'Start it again and look at its log.',
  });
}

/** CRIU's first error is about the service and not about the way its pages go. */
const CRIU_REFUSES = /^Error \(criu\/(?!page-xfer|page-pipe|mem|util|tls|cr-dump)/;

/** The stream of memory broke. The destination may know why, for instance that it ran out of room. */
async function whyBroken(context: SagaContext, row: Row, broken: UmsError, signal: AbortSignal): Promise<UmsError> {
  try {
    await context.peers.request(row.destination, {
      method: 'POST',
      path: `/peer/v1/migrations/${row.id}/received`,
      body: receivedRequestSchema.parse({ listening: [], processes: 1 }),
      schema: answerSchema,
      timeout_ms: WHY_TIMEOUT_MS,
      signal,
    });
  } catch (error) {
    const told = toUmsError(error);
    if (told.code === 'UMS_E_NO_ROOM' || told.code === 'UMS_E_TRANSFER') return told;
  }
  return broken;
}
