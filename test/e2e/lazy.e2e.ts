import assert from 'node:assert/strict';
import { copyFile, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { z } from 'zod';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import { run } from '#src/telemetry/exec.ts';

/**
 * Lazy dumps and restores with runc, CRIU, the pager and its keeper on one host (support/lazy-scenarios.ts). What the
 * processes see of their memory while it arrives is proved by a program that knows what every page must hold.
 */
const COMMAND = '/opt/ums/app/test/e2e/support/lazy-command.ts';
const NODE = '/opt/ums/node/bin/node';
const SCENARIO_LIMIT_MS = 120_000;
const lab = Lab.open();
let alpha: Host;

before(async () => {
  await lab.up({ hosts: ['alpha'], agents: false });
  alpha = lab.host('alpha');
  const directory = await mkdtemp(join(tmpdir(), 'ums-churn-'));
  try {
    const source = join(import.meta.dirname, 'support', 'churn.c');
    const binary = join(directory, 'churn');
    await run('gcc', ['-O2', '-std=gnu17', '-Wall', '-static', '-pthread', '-o', binary, source]);
    await copyFile(binary, alpha.path('/tmp/churn'));
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
});

after(async () => {
  await alpha.exec('runc', ['delete', '--force', 'lazy-scene'], { okExitCodes: [0, 1] });
});

async function scenario<T>(name: string, schema: z.ZodType<T>, ...args: string[]): Promise<T> {
  const words = ['--disable-warning=ExperimentalWarning', COMMAND, name, ...args];
  const { stdout } = await alpha.exec(NODE, words, {
    timeout_ms: SCENARIO_LIMIT_MS,
    pickLine: (stderr) => stderr.slice(-3000),
  });
  const result = schema.parse(JSON.parse(stdout));
  // Nothing of it may stay: a pager ends by itself, and its keeper with it.
  const { stdout: left } = await alpha.exec('sh', ['-c', "ps -eo args | grep -E '[p]ager.pl|[k]eeper.pl' || true"]);
  assert.equal(left, '');
  return result;
}

const counters = z.object({ faults: z.int(), remote_faults: z.int(), open_pages: z.int(), state: z.string() });

void describe('a lazy restore', () => {
  void it('is filled from a complete store', async () => {
    const { status } = await scenario('complete', z.object({ status: counters }), '96');
    assert.equal(status.open_pages, 0);
    assert.equal(status.remote_faults, 0);
  });

  void it('is filled as pages arrive, while its processes fork, move, give up and divide their memory', async () => {
    const { status } = await scenario('late', z.object({ status: counters }));
    assert.ok(status.remote_faults > 0, 'processes had to wait for pages');
  });

  void it('waits, and sees no zeros, when first the keeper and then the pager is killed; without any keeper it would', async () => {
    const { noticed_ms } = await scenario('killed', z.object({ noticed_ms: z.number() }));
    assert.ok(noticed_ms < 1000, `the agent noticed after ${noticed_ms} ms`);
  });

  void it('goes on without the agent, and with it again', async () => {
    await scenario('agentLost', z.object({ status: counters }));
  });

  void it('that goes away leaves nothing, and can be begun again', async () => {
    await scenario('abandoned', z.object({}));
  });

  void it('can be made an eager one', async () => {
    await scenario('eager', z.object({ materialise_ms: z.number() }));
  });
});

void describe("CRIU's own dump", () => {
  void it('is received page by page', async () => {
    await scenario('received', z.object({ received_ms: z.number() }));
  });
});
