import { mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Journal } from '#src/coordination/journal.ts';
import { run } from '#src/telemetry/exec.ts';

/**
 * Checkpoints are staged in memory, in a tmpfs of their own with a size of its own: /run is often too small for them.
 * It stays mounted when the agent stops, because a restored service may still need it after a restart of the agent.
 */
export async function prepareStaging(runDir: string, given?: string): Promise<string> {
  if (given !== undefined) {
    // Who may not mount anything says where there is room.
    await mkdir(given, { recursive: true, mode: 0o700 });
    return given;
  }
  const path = join(runDir, 'staging');
  await mkdir(path, { recursive: true, mode: 0o700 });
  const mounts = await readFile('/proc/self/mountinfo', 'utf8');
  const mounted = mounts.split('\n').some((line) => line.split(' ')[4] === path);
  if (!mounted) await run('mount', ['-t', 'tmpfs', '-o', 'size=90%,mode=0700,nosuid,nodev', 'ums-staging', path]);
  return path;
}

/** Deletes staging directories of which the journal knows no unfinished migration: leftovers of a killed agent. */
export async function sweepStaging(path: string, journal: Journal): Promise<void> {
  const wanted = new Set(journal.unfinished().map((row) => row.id));
  for (const name of await readdir(path)) {
    if (!wanted.has(name)) await rm(join(path, name), { recursive: true, force: true });
  }
}
