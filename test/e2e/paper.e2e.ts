import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { describe, it } from 'node:test';
import { z } from 'zod';
import { run } from '#src/telemetry/exec.ts';

/** One of the paper's experiments, as small as it can be, by all three approaches: they share how a service is moved. */
const root = resolve(import.meta.dirname, '../..');
const TEST_LIMIT_MS = 400_000;
const ADDED_UP_MS = 1;

const resultSchema = z.object({
  event: z.literal('result'),
  status: z.literal('done'),
  failures: z.array(z.string()).length(0),
  runs: z.array(
    z.object({
      approach: z.string(),
      from: z.string(),
      at: z.int(),
      technique: z.string(),
      runs_ms: z.number(),
      total_ms: z.number(),
      downtime_ms: z.number().positive(),
      problems: z.array(z.string()).length(0),
      phases: z.record(z.string(), z.number().min(0)),
    }),
  ),
});

void describe('ums bench processes', { timeout: TEST_LIMIT_MS }, () => {
  void it('moves a service of two processes by each approach, and tells where the time went', async (t) => {
    const out = await mkdtemp(join(tmpdir(), 'ums-paper-'));
    try {
      const sizes = ['--counts', '2', '--engine', 'podman', '--repeat', '1'];
      const args = ['bench', 'processes', ...sizes, '--json', '--out', out];
      const { stdout } = await run(resolve(root, 'ums'), args, { timeout_ms: TEST_LIMIT_MS });
      const { runs } = resultSchema.parse(JSON.parse(stdout.trim().split('\n').at(-1) ?? ''));
      assert.deepEqual(
        runs.map(({ approach, at }) => [approach, at]),
        [
          ['orchestrator-level', 2],
          ['container-level', 2],
          ['service-level', 2],
        ],
      );
      for (const { approach, phases, runs_ms, total_ms, downtime_ms } of runs) {
        t.diagnostic(`${approach}: runs after ${runs_ms} ms, away ${downtime_ms} ms, done after ${total_ms} ms`);
        const told_ms = Object.values(phases).reduce((sum, each) => sum + each, 0);
        assert.ok(told_ms >= total_ms - ADDED_UP_MS, `${approach}: the phases add up to ${told_ms} ms`);
        for (const phase of ['restoring', 'committing']) assert.ok((phases[phase] ?? 0) > 0, `${approach}: ${phase}`);
        assert.ok(downtime_ms < runs_ms && runs_ms < total_ms + downtime_ms, approach);
      }
      assert.deepEqual((await readdir(out)).filter((name) => name.endsWith('.svg')).length, 2);
    } finally {
      await rm(out, { recursive: true, force: true });
    }
  });
});
