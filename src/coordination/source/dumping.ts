import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Driver } from '#src/drivers/contract.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { openPageRelay } from '#src/transfer/pages/relay.ts';
import { imageManifest, sendImages } from '#src/transfer/pages/images.ts';
import { sharedWritableMappings } from '#src/transfer/tree/index.ts';
import { progressReporter, type SagaContext } from '../context.ts';
import type { Row } from '../journal.ts';
import { listeningPorts } from '../listening.ts';
import { answerSchema, receivedRequestSchema, sizesSchema } from '../messages.ts';
import type { SourceStep } from './steps.ts';
import { copyTrees, treesOf } from './trees.ts';

const DUMP_TIMEOUT_MS = 3_600_000;

/** Memory and the last changes of the files travel side by side, while the service is frozen. */
export const dumping: SourceStep = {
  async run(context, row, signal, memory) {
    const driver = context.driver(row.engine);
    const pids = await driver.processes(row.handle);
    const listening = await listeningPorts(pids);
    const alwaysDirty = await sharedWritableMappings(pids, treesOf(row));
    // One failing ends the other: an AbortController of their own, because half a copy is of no use.
    const both = new AbortController();
    const either = AbortSignal.any([signal, both.signal]);
    const stopOther = (error: unknown) => {
      both.abort(error);
      throw error;
    };
    await Promise.all([
      dumpMemory(context, row, driver, either).catch(stopOther),
      copyTrees(context, row, either, memory, { pass: 2, live: false, alwaysDirty }).catch(stopOther),
    ]);
    await context.peers.request(row.destination, {
      method: 'POST',
      path: `/peer/v1/migrations/${row.id}/received`,
      body: receivedRequestSchema.parse({ listening, processes: pids.length, passes: 2 }),
      schema: answerSchema,
      timeout_ms: 60_000,
      signal,
    });
    return 'restoring';
  },
};

async function dumpMemory(context: SagaContext, row: Row, driver: Driver, signal: AbortSignal): Promise<void> {
  const imagesDir = join(context.stagingRoot, row.id, 'images');
  const workDir = join(context.stagingRoot, row.id, 'work');
  await rm(imagesDir, { recursive: true, force: true });
  await mkdir(imagesDir, { recursive: true, mode: 0o700 });
  await mkdir(workDir, { recursive: true, mode: 0o700 });
  const onWire = (bytes: number) => context.journal.addWire(row.id, bytes);
  const progress = progressReporter(context, row.id, 'memory', sizesSchema.parse(row.data['sizes']).state_bytes);
  let memoryBytes = 0;
  const stream = await context.peers.openDuplex(
    row.destination,
    { kind: 'pages', migration: row.id },
    { signal, onWire },
  );
  const relay = await openPageRelay(stream, (bytes) => {
    memoryBytes += bytes;
    progress.add(bytes);
  });
  // CRIU is never killed while it dumps: taking away its page server makes it put the processes back and fail.
  const takeAway = () => relay.close();
  signal.addEventListener('abort', takeAway);
  try {
    await driver.checkpoint(row.handle, {
      imagesDir,
      workDir,
      pageServer: { address: relay.address, port: relay.port },
      timeout_ms: DUMP_TIMEOUT_MS,
    });
  } catch (error) {
    signal.throwIfAborted();
    throw (await explain(driver, row)) ?? relay.failure() ?? error;
  } finally {
    signal.removeEventListener('abort', takeAway);
    relay.close();
  }
  progress.end();
  signal.throwIfAborted();
  await context.peers.send(row.destination, { kind: 'criu-images', migration: row.id }, sendImages(imagesDir), {
    signal,
    onWire,
  });
  const imageBytes = (await imageManifest(imagesDir)).reduce((sum, image) => sum + image.size, 0);
  context.journal.update(row.id, { state_bytes: memoryBytes + imageBytes });
}

/** A dump that failed because the service is no longer there is not CRIU's fault. */
async function explain(driver: Driver, row: Row): Promise<UmsError | undefined> {
  const state = await driver.state(row.handle);
  if (state === 'frozen' || state === 'running') return undefined;
  return new UmsError('UMS_E_SERVICE_GONE', {
    message: `${row.service} is ${state}: it ended or was removed during the dump.`,
    fault: 'service',
    mend: 'Start it again and look at its log.',
  });
}
