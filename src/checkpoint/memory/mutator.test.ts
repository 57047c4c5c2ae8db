import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { follow, reasonAgainst, stop } from './check.test-support.ts';
import type { DirtyTracker, TrackerKind } from './model.ts';
import { openTracker } from './open-tracker.ts';

/** Seeds to run; more with UMS_MUTATOR_SEEDS. */
const SEEDS = Array.from({ length: Number(process.env['UMS_MUTATOR_SEEDS'] ?? 4) }, (_, index) => index + 1);
const CC = '/usr/bin/cc';
const scratch = mkdtempSync(join(tmpdir(), 'ums-mutator-'));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

function compile(): string {
  const program = join(scratch, 'mutator');
  const source = join(import.meta.dirname, 'mutator.test-support.c');
  if (!existsSync(program)) execFileSync(CC, ['-std=gnu17', '-O2', '-pthread', '-o', program, source]);
  return program;
}

/** Lets a program change its memory in every way while it is followed, and compares all of it at the end. */
async function mutate(kind: TrackerKind, seed: number): Promise<void> {
  const child = spawn(compile(), [String(seed), '24', '1'], { stdio: ['ignore', 'pipe', 'inherit'] });
  const pid = child.pid ?? 0;
  const children = () => readFileSync(`/proc/${pid}/task/${pid}/children`, 'latin1').match(/\d+/g) ?? [];
  const pids = () => [pid, ...children().map(Number)];
  const unpause = async () => {
    for (const each of pids().toReversed()) process.kill(each, 'SIGCONT');
  };
  const pause = async () => {
    await stop([pid]);
    await stop(pids());
  };
  let tracker: DirtyTracker | undefined;
  try {
    await once(child.stdout, 'data');
    tracker = await openTracker({ prefer: kind, pause, unpause });
    const outcome = await follow(tracker, pids, 5, () => (seed * 7) % 20);
    expect(outcome.missed).toEqual([]);
    expect(outcome.final_changed + outcome.final_rest).toBeGreaterThan(0);
    expect(child.exitCode ?? child.signalCode).toBeNull();
  } finally {
    child.kill('SIGKILL');
    await tracker?.close();
  }
}

for (const kind of ['written', 'soft-dirty'] as const) {
  const reason = existsSync(CC) ? await reasonAgainst(kind) : `there is no ${CC}`;
  if (reason !== '') process.stderr.write(`${kind} is not tested: ${reason}\n`);
  describe.skipIf(reason !== '')(`no write is missed: ${kind}`, () => {
    it.each(SEEDS)('seed %i', { timeout: 60_000 }, (seed) => mutate(kind, seed));
  });
}
