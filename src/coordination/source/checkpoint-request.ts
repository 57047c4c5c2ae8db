import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { CheckpointRequest } from '#src/drivers/contract.ts';
import { type SagaContext, specificationOf } from '../context.ts';
import type { Row } from '../journal.ts';
import { sizesSchema } from '../messages.ts';
import { planOf } from '../plan.ts';

const DUMP_TIMEOUT_MS = 3_600_000;
/**
 * Where memory travels as CRIU's images, up to this much is dumped to images in memory first and sent as one stream; more
 * goes through a page server while CRIU still dumps. CRIU corks its page-server connection and so waits 200 ms for the
 * kernel before its last words leave; beneath this size, that is longer than dump and transfer could overlap.
 */
const LOCAL_DUMP_MAX_BYTES = 64 * 1024 * 1024;

/** Whether CRIU writes all that it dumps to files on this host. A page server serves one dump. */
export function dumpsHere(row: Row): boolean {
  if (specificationOf(row).containers !== undefined) return true;
  return planOf(row).path === 'pages' || sizesSchema.parse(row.data['sizes']).state_bytes <= LOCAL_DUMP_MAX_BYTES;
}

/** The request for the dump of a migration, with empty directories. */
export async function makeCheckpointRequest(context: SagaContext, row: Row): Promise<CheckpointRequest> {
  const imagesDir = join(context.stagingRoot, row.id, 'images');
  const workDir = join(context.stagingRoot, row.id, 'work');
  await rm(imagesDir, { recursive: true, force: true });
  await mkdir(imagesDir, { recursive: true, mode: 0o700 });
  await mkdir(workDir, { recursive: true, mode: 0o700 });
  return checkpointRequest(context, row);
}

export function checkpointRequest(context: SagaContext, row: Row): CheckpointRequest {
  return {
    imagesDir: join(context.stagingRoot, row.id, 'images'),
    workDir: join(context.stagingRoot, row.id, 'work'),
    timeout_ms: DUMP_TIMEOUT_MS,
    ...(planOf(row).path === 'pages' ? { lazy: true } : {}),
  };
}
