import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { CheckpointRequest, Driver } from '#src/drivers/contract.ts';
import { toUmsError, UmsError } from '#src/telemetry/errors.ts';
import { openPageRelay } from '#src/transfer/pages/relay.ts';
import { sendImages } from '#src/transfer/pages/images.ts';
import { sharedWritableMappings } from '#src/transfer/tree/index.ts';
import { progressReporter, type SagaContext, treesOf } from '../context.ts';
import type { Row } from '../journal.ts';
import { listeningPorts } from '../listening.ts';
import { answerSchema, receivedRequestSchema, sizesSchema } from '../messages.ts';
import type { SourceMemory, SourceStep } from './steps.ts';
import { copyTrees } from './trees.ts';

const DUMP_TIMEOUT_MS = 3_600_000;
const RECEIVED_TIMEOUT_MS = 600_000;
const WHY_TIMEOUT_MS = 5000;

/** Memory and the last changes of the files travel side by side, while the service is frozen. */
export const dumping: SourceStep = {
  async run(context, row, signal, memory) {
    const driver = context.driver(row.engine);
    const pids = await driver.processes(row.handle);
    const listening = await listeningPorts(pids);
    const alwaysDirty = await sharedWritableMappings(pids, treesOf(row));
    await sendBoth(context, row, driver, signal, memory, alwaysDirty);
    await context.peers.request(row.destination, {
      method: 'POST',
      path: `/peer/v1/migrations/${row.id}/received`,
      body: receivedRequestSchema.parse({ listening, processes: pids.length }),
      schema: answerSchema,
      timeout_ms: RECEIVED_TIMEOUT_MS,
      signal,
    });
    return 'restoring';
  },
};

/**
 * Files and memory at the same time, but CRIU starts only when the files have been read: while it dumps it makes a
 * directory in the service's own /tmp for a moment. One failing ends the other, because half a copy is of no use, and
 * both have ended before a failure is told: a CRIU still at work would freeze again what going back has thawed.
 */
async function sendBoth(
  context: SagaContext,
  row: Row,
  driver: Driver,
  signal: AbortSignal,
  memory: SourceMemory,
  alwaysDirty: Set<string>,
): Promise<void> {
  const failed = new AbortController();
  const either = AbortSignal.any([signal, failed.signal]);
  const stopOther = (error: unknown) => {
    failed.abort(error);
    throw error;
  };
  const read = Promise.withResolvers<void>();
  const onRead = () => read.resolve();
  const files = copyTrees(context, row, either, memory, { pass: 2, live: false, alwaysDirty, onRead }).catch(stopOther);
  const pages = Promise.race([read.promise, files])
    .then(() => dumpMemory(context, row, driver, either))
    .catch(stopOther);
  const results = await Promise.allSettled([files, pages]);
  const failure = results.find((result) => result.status === 'rejected');
  if (failure !== undefined) throw failed.signal.reason;
}

/**
 * Up to this much memory is dumped to images in memory first and sent as one stream; more goes through a page server
 * while CRIU still dumps. CRIU corks its page-server connection and so waits 200 ms for the kernel before its last
 * words leave; beneath this size, that is longer than dump and transfer could overlap.
 */
const LOCAL_DUMP_MAX_BYTES = 64 * 1024 * 1024;

async function dumpMemory(context: SagaContext, row: Row, driver: Driver, signal: AbortSignal): Promise<void> {
  const imagesDir = join(context.stagingRoot, row.id, 'images');
  const workDir = join(context.stagingRoot, row.id, 'work');
  await rm(imagesDir, { recursive: true, force: true });
  await mkdir(imagesDir, { recursive: true, mode: 0o700 });
  await mkdir(workDir, { recursive: true, mode: 0o700 });
  const { state_bytes } = sizesSchema.parse(row.data['sizes']);
  const progress = progressReporter(context, row.id, 'memory', state_bytes);
  const request = { imagesDir, workDir, timeout_ms: DUMP_TIMEOUT_MS };
  let pageBytes = 0;
  if (state_bytes <= LOCAL_DUMP_MAX_BYTES) {
    await driver.checkpoint(row.handle, request).catch(async (error: unknown) => {
      throw (await explain(driver, row)) ?? error;
    });
  } else {
    pageBytes = await dumpThroughRelay(context, row, driver, request, signal, progress.add);
  }
  signal.throwIfAborted();
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
