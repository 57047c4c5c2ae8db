import assert from 'node:assert/strict';
import { resolve } from 'node:path';
import { after, describe, it } from 'node:test';
import { z } from 'zod';
import { Lab } from '#lab/lab.ts';
import { run } from '#src/telemetry/exec.ts';

/** The first thing a stranger does with ums, judged by what it promises. */
const root = resolve(import.meta.dirname, '../..');

const resultSchema = z.object({
  event: z.literal('result'),
  status: z.literal('done'),
  technique: z.enum(['cold', 'pre-copy', 'post-copy', 'hybrid']),
  approach: z.literal('orchestrator-level'),
  source: z.literal('alpha'),
  destination: z.literal('beta'),
  downtime_ms: z.number().positive(),
  total_ms: z.number().positive(),
  bytes_on_wire: z.int().positive(),
  state_bytes: z.int().min(256 * 1024 * 1024),
  steps: z.array(z.object({ name: z.string(), start_ms: z.number(), duration_ms: z.number() })).min(10),
  lost_writes: z.literal(0),
  client_downtime_ms: z.number().positive(),
  checksum_equal: z.literal(true),
});

describe('ums demo', () => {
  after(() => Lab.open().down());

  it('moves a Redis under load there and back without losing a write', { timeout: 240_000 }, async () => {
    const { stdout } = await run(resolve(root, 'ums'), ['demo', '--json'], { timeout_ms: 230_000 });
    const events = stdout
      .trim()
      .split('\n')
      .map((line): unknown => JSON.parse(line));
    const result = resultSchema.parse(events.at(-1));
    assert.ok(result.client_downtime_ms < 60_000, `a client waited ${result.client_downtime_ms} ms`);
    assert.ok(result.downtime_ms <= result.total_ms);
  });
});
