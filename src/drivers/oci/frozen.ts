import { writeFileSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { criuFailure } from '#src/checkpoint/errors.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { type Freezer, freezerOf, isFrozen, isFullyFrozen, isMissing, poll } from './cgroup.ts';
import { logOf } from './dump.ts';

const FREEZE_LIMIT_MS = 5000;
const KILL_LIMIT_MS = 20_000;

/** Throws unless the processes around `pid` exist and stand still, every one. */
export async function requireAllFrozen(pid: number, workDir: string): Promise<void> {
  const freezer = pid === 0 ? undefined : await freezerOf(pid);
  if (freezer !== undefined && (await isFrozen(freezer))) {
    if (await poll(() => isFullyFrozen(freezer), FREEZE_LIMIT_MS)) return;
  }
  throw criuFailure(
    'UMS_E_RESTORE',
    await logOf(workDir, 'restore.log'),
    new UmsError('UMS_E_RESTORE', { message: 'the restored processes could not be kept frozen', fault: 'destination' }),
  );
}

/**
 * Ends frozen processes without one more instruction of theirs: the kernel kills frozen tasks where they stand. True when
 * all have ended; otherwise they will. With `at once` the group is thawed as soon as all have the signal: an engine that
 * cleans up when the first process has ended (Docker) would find a group that is still frozen to be paused, and leave it.
 */
export async function killFrozen(
  freezer: Freezer,
  pids: readonly number[],
  thaw: 'at once' | 'when empty' = 'when empty',
): Promise<boolean> {
  if (freezer.version === 2) {
    writeFileSync(join(freezer.directory, 'cgroup.kill'), '1');
    // Every process has the signal by now, with which it runs nothing of its own any more.
    if (thaw === 'at once') thawKilled(freezer);
    const ended = await poll(() => isEmpty(freezer), KILL_LIMIT_MS);
    // A group that stays frozen without processes looks paused to runc for ever.
    if (ended) thawKilled(freezer);
    return ended;
  }
  // The first version lets tasks die only once they are thawed; with the signal pending they run nothing of theirs.
  for (const pid of pids) kill(pid);
  await writeFile(join(freezer.directory, 'freezer.state'), 'THAWED');
  return false;
}

async function isEmpty(freezer: Freezer): Promise<boolean> {
  try {
    return /^populated 0$/m.test(await readFile(join(freezer.directory, 'cgroup.events'), 'utf8'));
  } catch (error) {
    if (isMissing(error)) return true;
    throw error;
  }
}

function thawKilled(freezer: Freezer): void {
  try {
    writeFileSync(join(freezer.directory, 'cgroup.freeze'), '0', { flag: 'r+' });
  } catch (error) {
    // The engine has removed the group meanwhile.
    if (!isMissing(error)) throw error;
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if (!isMissing(error)) throw error;
  }
}
