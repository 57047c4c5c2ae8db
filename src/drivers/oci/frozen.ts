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
 * all have ended; otherwise they will. With `at once` the group is thawed before they end: an engine that cleans up when the
 * first process has ended (Docker) would find a group that is still frozen to be paused, and leave it. The stop signal
 * keeps them where they are: a task that leaves the kernel's freezer looks for signals before it returns to its program,
 * and so does each thread of one that is told to stop (signal.c, get_signal). Thawing them right after they were killed is
 * not enough: it waits for a lock of all control groups, an engine may be faster.
 */
export async function killFrozen(
  freezer: Freezer,
  pids: readonly number[],
  thaw: 'at once' | 'when empty' = 'when empty',
): Promise<boolean> {
  if (freezer.version === 2) {
    if (thaw === 'at once') {
      for (const pid of pids) signal(pid, 'SIGSTOP');
      thawGroup(freezer);
    }
    writeFileSync(join(freezer.directory, 'cgroup.kill'), '1');
    // Every process has the signal by now, with which it runs nothing of its own any more.
    const ended = await poll(() => isEmpty(freezer), KILL_LIMIT_MS);
    // A group that stays frozen without processes looks paused to runc for ever.
    if (ended) thawGroup(freezer);
    return ended;
  }
  // The first version lets tasks die only once they are thawed; with the signal pending they run nothing of theirs.
  for (const pid of pids) signal(pid, 'SIGKILL');
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

function thawGroup(freezer: Freezer): void {
  try {
    writeFileSync(join(freezer.directory, 'cgroup.freeze'), '0', { flag: 'r+' });
  } catch (error) {
    // The engine has removed the group meanwhile.
    if (!isMissing(error)) throw error;
  }
}

function signal(pid: number, name: 'SIGKILL' | 'SIGSTOP'): void {
  try {
    process.kill(pid, name);
  } catch (error) {
    if (!isMissing(error)) throw error;
  }
}
