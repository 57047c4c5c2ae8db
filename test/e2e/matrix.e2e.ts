import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { describe, it } from 'node:test';
import { z } from 'zod';
import { run } from '#src/telemetry/exec.ts';

/** Pairs of the matrix, with cells that ums must refuse and ones in which it must move the service. */
const root = resolve(import.meta.dirname, '../..');
const TEST_LIMIT_MS = 600_000;

const resultSchema = z.object({
  event: z.literal('result'),
  status: z.literal('done'),
  cells: z.array(
    z.object({
      cell: z.object({ from: z.string(), to: z.string(), approach: z.string(), technique: z.string() }),
      outcome: z.string(),
      code: z.string().nullable(),
      reason: z.string().nullable(),
      downtime_ms: z.number().nullable(),
      total_ms: z.number(),
      problems: z.array(z.string()),
    }),
  ),
});

async function cellsOf(...words: string[]): Promise<z.infer<typeof resultSchema>['cells']> {
  const out = await mkdtemp(join(tmpdir(), 'ums-matrix-'));
  try {
    const args = ['bench', 'matrix', ...words, '--json', '--out', out];
    const { stdout } = await run(resolve(root, 'ums'), args, { timeout_ms: TEST_LIMIT_MS });
    return resultSchema.parse(JSON.parse(stdout.trim().split('\n').at(-1) ?? '')).cells;
  } finally {
    await rm(out, { recursive: true, force: true });
  }
}

void describe('ums bench matrix', { timeout: TEST_LIMIT_MS }, () => {
  void it('moves a service between Podman and Docker in capsules, and tells why it cannot without', async () => {
    const pair = ['--from', 'podman', '--to', 'docker', '--technique', 'hybrid'];
    const cells = await cellsOf(...pair, '--approach', 'orchestrator-level,container-level');
    assert.deepEqual(
      cells.map(({ cell, outcome, code, problems }) => [cell.approach, outcome, code, problems]),
      [
        ['orchestrator-level', 'refused', 'UMS_E_SPECIFICATION', []],
        ['container-level', 'migrated', null, []],
      ],
    );
    const [refused, moved] = cells;
    assert.match(refused?.reason ?? '', /cannot make one of docker/);
    assert.ok((moved?.downtime_ms ?? 0) > 0 && (moved?.downtime_ms ?? 0) < (moved?.total_ms ?? 0));
  });

  void it('moves a service out of Docker Swarm in a capsule or by itself, and leaves the swarm’s own containers alone', async () => {
    const cells = await cellsOf('--from', 'swarm', '--to', 'podman', '--technique', 'cold');
    assert.deepEqual(
      cells.map(({ cell, outcome, code, problems }) => [cell.approach, outcome, code, problems]),
      [
        ['orchestrator-level', 'refused', 'UMS_E_SPECIFICATION', []],
        ['container-level', 'migrated', null, []],
        ['service-level', 'migrated', null, []],
      ],
    );
  });

  void it('starts a capsule in Docker Swarm for a service that comes there', async () => {
    const cells = await cellsOf(
      '--from',
      'podman',
      '--to',
      'swarm',
      '--technique',
      'hybrid',
      '--approach',
      'container-level',
    );
    assert.deepEqual(
      cells.map(({ outcome, problems }) => [outcome, problems]),
      [['migrated', []]],
    );
  });

  void it('lets a service move itself from a bundle to containerd, cold', async () => {
    const pair = ['--from', 'runc', '--to', 'containerd', '--technique', 'cold,post-copy'];
    const cells = await cellsOf(...pair, '--approach', 'service-level');
    assert.deepEqual(
      cells.map(({ cell, outcome, code, problems }) => [cell.technique, outcome, code, problems]),
      [
        ['cold', 'migrated', null, []],
        ['post-copy', 'refused', 'UMS_E_TECHNIQUE', []],
      ],
    );
  });
});
