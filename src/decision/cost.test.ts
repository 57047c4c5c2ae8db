import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { PAGE_BYTES } from '#src/transfer/pages/model.ts';
import { outlook } from './cost.ts';
import { PATH_BYTES_S } from './freeze.ts';
import { ON_STALL } from './model.ts';
import { type Service, simulate, situationOf } from './simulator.test-support.ts';

const GIB_PAGES = 2 ** 30 / PAGE_BYTES;
const link = { bytes_s: 125e6, rtt_ms: 0.2, path_bytes_s: PATH_BYTES_S };
const goals = { max_downtime_ms: 300, max_rounds: 30, on_stall: 'throttle' } as const;
const writing = (mb_s: number): Service => ({
  present_pages: GIB_PAGES,
  hot_share: 0.2,
  hot_pages_s: (mb_s * 1e6) / PAGE_BYTES,
  cold_pages_s: 0,
});

describe('the outlook of a migration under way', () => {
  it('is near what then comes', () => {
    for (const mb_s of [5, 20, 50]) {
      const { rounds, downtime_ms } = simulate('pre-copy', writing(mb_s), link, goals);
      const situation = situationOf(GIB_PAGES);
      const early = outlook({ technique: 'pre-copy', rounds: rounds.slice(0, 2), cpu_share: 1, situation }, goals);
      const came_ms = rounds.slice(2).reduce((sum, round) => sum + round.elapsed_ms, 0);
      expect(early.action).toBe('freeze');
      expect(Math.abs(early.downtime_ms - downtime_ms)).toBeLessThan(50);
      expect(Math.abs(early.remaining_ms - came_ms - downtime_ms - situation.costs.settle_ms)).toBeLessThan(1500);
    }
  });

  it('ends within the limit of rounds, wherever one looks from', () => {
    const many = fc.record({
      mb_s: fc.double({ min: 0, max: 2000, noNaN: true }),
      from: fc.nat(5),
      on_stall: fc.constantFrom(...ON_STALL),
      technique: fc.constantFrom('pre-copy' as const, 'hybrid' as const),
    });
    fc.assert(
      fc.property(many, ({ mb_s, from, on_stall, technique }) => {
        const wanted = { ...goals, on_stall };
        const { rounds } = simulate(technique, writing(mb_s), link, wanted);
        const situation = situationOf(GIB_PAGES);
        const seen = outlook({ technique, rounds: rounds.slice(0, from), cpu_share: 1, situation }, wanted);
        expect(['freeze', 'post-copy', 'stop']).toContain(seen.action);
        expect(seen.rounds).toBeLessThanOrEqual(wanted.max_rounds);
        expect(seen.remaining_ms).toBeGreaterThan(0);
      }),
    );
  });
});
