import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { UmsError } from '#src/telemetry/errors.ts';
import { run } from '#src/telemetry/exec.ts';

const SAVE_LIMIT_MS = 900_000;
const ASK_LIMIT_MS = 30_000;

/** Engines that can be asked for an image, and how they write the archive that `unpackArchive` reads. */
const ENGINES: Readonly<Record<string, readonly string[]>> = {
  podman: ['save', '--format', 'docker-archive', '--output'],
  docker: ['save', '--output'],
};

/** The archive of an image: a file of that name, or what an engine here writes of an image of that name. */
export async function archiveOf(reference: string, work: string): Promise<string> {
  if (existsSync(reference)) return reference;
  const archive = join(work, 'saved.tar');
  for (const [engine, save] of Object.entries(ENGINES)) {
    if (!(await hasImage(engine, reference))) continue;
    await run(engine, [...save, archive, reference], { timeout_ms: SAVE_LIMIT_MS });
    return archive;
  }
  throw new UmsError('UMS_E_USAGE', {
    message: `There is no file ${reference}, and neither Podman nor Docker has an image of that name here.`,
    fault: 'user',
    state: 'Nothing was written.',
    mend: 'Name an archive (docker save, podman save), or pull the image first.',
  });
}

async function hasImage(engine: string, reference: string): Promise<boolean> {
  try {
    await run(engine, ['image', 'inspect', reference], { timeout_ms: ASK_LIMIT_MS });
    return true;
  } catch {
    // It is not installed, does not answer, or does not have it: another may.
    return false;
  }
}
