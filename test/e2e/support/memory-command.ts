import { mkdir, rm } from 'node:fs/promises';
import { z } from 'zod';
import { follow } from '#src/checkpoint/memory/check.test-support.ts';
import { openTracker } from '#src/checkpoint/memory/index.ts';
import { WrittenTracker } from '#src/checkpoint/memory/written-tracker.ts';
import { createDrivers } from '#src/drivers/registry.ts';

/**
 * Inside a host: follows the memory of a running container, freezes it, compares every page, and dumps it right then, as
 * a migration does: `node memory-command.ts ENGINE NAME ROUNDS [TRACKER]`. Prints one line of JSON.
 */
const [engine, name, rounds, kind] = z
  .tuple([
    z.enum(['podman', 'runc']),
    z.string(),
    z.coerce.number().int().min(1).max(1000),
    z.enum(['written', 'soft-dirty', 'hash']).default('written'),
  ])
  .parse(process.argv.slice(2));
const SCRATCH = '/run/ums-memory-test';
const driver = createDrivers({ stateDir: '/var/lib/ums-memory-test', runDir: SCRATCH }).get(engine);
if (driver === undefined) throw new Error(`no driver ${engine}`);
const { handle } = await driver.describe(name);

const tracker = await openTracker({
  prefer: kind,
  pause: () => driver.freeze(handle),
  unpause: () => driver.thaw(handle),
});
let dumped_ms = 0;
try {
  const outcome = await follow(
    tracker,
    () => driver.processes(handle),
    rounds,
    () => 50,
    () => driver.freeze(handle),
  );
  const request = { imagesDir: `${SCRATCH}/images`, workDir: `${SCRATCH}/work`, timeout_ms: 60_000 };
  for (const directory of [request.imagesDir, request.workDir]) {
    await rm(directory, { recursive: true, force: true });
    await mkdir(directory, { recursive: true });
  }
  const started = performance.now();
  await driver.checkpoint(handle, request);
  dumped_ms = performance.now() - started;
  const processes = tracker instanceof WrittenTracker ? tracker.details() : [];
  process.stdout.write(`${JSON.stringify({ ...outcome, dumped_ms, processes })}\n`);
} finally {
  await driver.thaw(handle);
  await tracker.close();
  await rm(SCRATCH, { recursive: true, force: true });
}
