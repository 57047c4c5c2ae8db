import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import { z } from 'zod';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';

/**
 * Each way to track changed memory, without a migration around it: a copy that is kept up to date as the tracker says is
 * compared with all of a frozen program's memory, page by page. What this kernel does not have is tried in a virtual
 * machine (soft-dirty.e2e.ts).
 */
const KINDS = (process.env['UMS_MOSAIC_TRACKERS'] ?? 'written,hash').split(',');
const SEEDS = (process.env['UMS_MOSAIC_SEEDS'] ?? '1,2').split(',');
const ROUNDS = 4;
const LIMIT_MS = 150_000;
const COMMAND = '/opt/ums/app/test/e2e/support/tracking-command.ts';

const resultSchema = z.object({ rounds: z.array(z.int()), compared: z.int(), wrong: z.int(), untouched: z.boolean() });

const lab = Lab.open();
let alpha: Host;

before(async () => {
  await lab.up({ agents: false });
  alpha = lab.host('alpha');
});

void describe('a copy kept up to date by a tracker equals the memory', () => {
  for (const kind of KINDS) {
    for (const seed of SEEDS) {
      void it(`${kind}, seed ${seed}`, { timeout: LIMIT_MS }, async (context) => {
        const args = ['--disable-warning=ExperimentalWarning', COMMAND, kind, seed, String(ROUNDS)];
        const { stdout, stderr } = await alpha.exec('node', args, { timeout_ms: LIMIT_MS, okExitCodes: [0, 1] });
        const line = stdout.trim().split('\n').at(-1) ?? '';
        assert.notEqual(line, '', stderr);
        const result = resultSchema.parse(JSON.parse(line));
        context.diagnostic(line);
        assert.equal(result.wrong, 0, line);
        assert.ok(result.untouched, 'the tracker left the memory as it was');
        assert.ok(result.compared > 1000 && result.rounds.length === ROUNDS);
      });
    }
  }
});
