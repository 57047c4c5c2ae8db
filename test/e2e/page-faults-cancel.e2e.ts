import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { agentRequest } from '#lab/agents.ts';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import { PATIENCE } from '#lab/patience.ts';
import { SOURCE_STATES } from '#src/coordination/states.ts';
import {
  everyByteRight,
  isActive,
  type Mosaic,
  mosaicPids,
  nothingLeft,
  removeMosaic,
  startMosaic,
  TECHNIQUES,
  withTechnique,
} from './support/mosaic.ts';
import {
  clearBreakpoint,
  ended,
  migrate,
  nothingStaged,
  reachedBreakpoint,
  setBreakpoint,
  until,
} from './support/moves.ts';

/**
 * `ums cancel` in every phase before the hand-over: within a second the migration has ended and the service runs where
 * it was, every byte of it, and nothing is left on either host. The phases come from the state table. UMS_CANCEL_MS gives
 * a machine that does much else at the same time longer; UMS_MOSAIC_TECHNIQUES chooses.
 */
const PHASES = SOURCE_STATES.slice(0, SOURCE_STATES.indexOf('committing'));
const WITHIN_MS = Number(process.env['UMS_CANCEL_MS'] ?? 1000) * PATIENCE;
const CHOSEN = process.env['UMS_MOSAIC_TECHNIQUES']?.split(',');
const LIMIT_MS = 120_000;

const lab = Lab.open();
const service: Mosaic = { name: 'mosaic-cancel', engine: 'runc' };
let alpha: Host;
let beta: Host;

before(async () => {
  await lab.up({ agents: false });
  await lab.restartAgents({ faultInjection: true });
  alpha = lab.host('alpha');
  beta = lab.host('beta');
  // Slow enough for each phase to last until it is cancelled.
  await lab.setLink({ rate: '50mbit' });
  await startMosaic(alpha, service, { seed: 9, mib: 8, forks: 1, rate: 1000 });
});

after(() => removeMosaic(lab.hosts, service));

for (const technique of TECHNIQUES) {
  if (!(CHOSEN?.includes(technique) ?? true)) continue;
  void describe(`cancelling ${technique}`, () => {
    for (const state of PHASES) {
      void it(state, { timeout: LIMIT_MS }, async (context) => {
        const place = { role: 'source', state, point: 'before', service: service.name } as const;
        await setBreakpoint(alpha, place);
        const { id } = await migrate(alpha, service.name, 'beta', withTechnique(technique));
        assert.ok(await reachedBreakpoint(alpha, alpha, id, state, 'before'), `it comes to ${state}`);
        await clearBreakpoint(alpha, place);
        const began_ms = performance.now();
        await agentRequest(alpha, 'POST', `/v1/migrations/${id}/cancel`);
        await until('it runs where it was', LIMIT_MS, async () => isActive(alpha) || undefined);
        const runs_ms = performance.now() - began_ms;
        const end = await ended(alpha, id);
        const ended_ms = performance.now() - began_ms;
        context.diagnostic(`runs after ${Math.round(runs_ms)} ms, ended after ${Math.round(ended_ms)} ms`);
        assert.equal(end.state, 'aborted');
        assert.equal(end.error?.code, 'UMS_E_CANCELLED');
        assert.deepEqual(mosaicPids(beta), [], 'no process of it at the destination');
        await everyByteRight(alpha, service);
        await nothingLeft(beta, service);
        for (const host of [alpha, beta]) await nothingStaged(host);
        assert.ok(ended_ms <= WITHIN_MS, `it took ${Math.round(ended_ms)} ms`);
      });
    }
  });
}
