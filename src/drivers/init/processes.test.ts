import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { afterEach, expect, test } from 'vitest';
import { allStandStill, exists, family, signalAll, stopAll, stoppedAlready, takenIds } from './processes.ts';

const LIMIT_MS = 5000;
let child: ChildProcess | undefined;
afterEach(() => signalAll(family(child?.pid ?? 0), 'SIGKILL'));

/** A shell with two children of its own, which are there when this returns. */
async function start(): Promise<number> {
  child = spawn('sh', ['-c', 'sleep 100 & sleep 100 & echo there; wait'], { stdio: ['ignore', 'pipe', 'ignore'] });
  if (child.stdout !== null) await once(child.stdout, 'data');
  return child.pid ?? 0;
}

test('a family is stopped as a whole, and goes on as a whole', async () => {
  const root = await start();
  const pids = family(root);
  expect(pids).toHaveLength(3);
  expect(pids[0]).toBe(root);
  expect(allStandStill(pids)).toBe(false);
  await stopAll(root, [], LIMIT_MS);
  expect(allStandStill(family(root))).toBe(true);
  expect(stoppedAlready(pids)).toEqual(pids);
  for (const pid of pids) expect(takenIds().has(pid)).toBe(true);
  signalAll(pids, 'SIGCONT');
  await expect.poll(() => allStandStill(pids), { timeout: LIMIT_MS }).toBe(false);
});

test('stopped processes end where they stand', async () => {
  const root = await start();
  await stopAll(root, [], LIMIT_MS);
  const pids = family(root);
  signalAll(pids.toReversed(), 'SIGKILL');
  await expect.poll(() => exists(root), { timeout: LIMIT_MS }).toBe(false);
  expect(family(root)).toEqual([]);
});

test('a family is stopped although one waits in the kernel for its child to begin a program', async () => {
  // clone with CLONE_VFORK: the parent cannot be stopped until the child has begun its program, which takes a while.
  const number = process.arch === 'x64' ? 56 : 220;
  const program = `$| = 1; print "there"; if (syscall(${number}, 0x4000 | 17, 0, 0, 0, 0) == 0) { select undef, undef, undef, 0.1; exec 'sleep', '100' } wait`;
  child = spawn('perl', ['-e', program], { stdio: ['ignore', 'pipe', 'ignore'] });
  const root = child.pid ?? 0;
  await expect.poll(() => family(root).length, { timeout: LIMIT_MS }).toBe(2);
  await stopAll(root, [], LIMIT_MS);
  expect(allStandStill(family(root))).toBe(true);
});
