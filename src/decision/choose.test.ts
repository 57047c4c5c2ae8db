import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { PAGE_BYTES } from '#src/transfer/pages/model.ts';
import { type ChoiceInputs, choose, isDependent } from './choose.ts';
import { PATH_BYTES_S } from './freeze.ts';
import { ON_STALL, TECHNIQUES, type Technique } from './model.ts';
import { dirtyOf, situationOf } from './simulator.test-support.ts';

const feasible = { feasible: true } as const;
const all = { cold: feasible, 'pre-copy': feasible, 'post-copy': feasible, hybrid: feasible };

function inputs(mib: number, dirty_mb_s: number, link_mb_s: number, changes: Partial<ChoiceInputs> = {}): ChoiceInputs {
  const present_pages = (mib * 2 ** 20) / PAGE_BYTES;
  const dirty = dirtyOf({
    present_pages,
    hot_share: 0.5,
    hot_pages_s: (dirty_mb_s * 1e6) / PAGE_BYTES,
    cold_pages_s: 0,
  });
  return {
    feasibility: all,
    goals: { max_downtime_ms: 300, max_rounds: 30, on_stall: 'throttle' },
    costs: {
      situation: situationOf(present_pages),
      link: { bytes_s: link_mb_s * 1e6, rtt_ms: 1, path_bytes_s: PATH_BYTES_S },
      zero_share: 0,
      compress_ratio: 1,
      dirty,
      file_bytes: 0,
    },
    ...changes,
  };
}

const without = (...techniques: Technique[]) => ({
  feasibility: {
    ...all,
    ...Object.fromEntries(techniques.map((each) => [each, { feasible: false, reason: `no ${each} here` }])),
  },
});

describe('choice of technique', () => {
  it.each([
    ['cold', 'a tiny service', inputs(8, 1, 125)],
    ['pre-copy', 'one that writes less than the link carries', inputs(1024, 10, 125)],
    ['hybrid', 'one whose working set does not fit', inputs(4096, 150, 125)],
    ['post-copy', 'one where hybrid is not feasible', inputs(4096, 200, 12, without('hybrid', 'pre-copy'))],
    ['cold', 'one where nothing else is feasible', inputs(1024, 10, 125, without('hybrid', 'pre-copy', 'post-copy'))],
    [
      'pre-copy',
      'one that must stay independent',
      inputs(1024, 500, 125, {
        independent: true,
        goals: { max_downtime_ms: 300, max_rounds: 30, on_stall: 'throttle' },
      }),
    ],
  ])('%s for %s', (technique, _service, given) => {
    const choice = choose(given);
    expect(choice.technique, choice.why).toBe(technique);
    expect(choice.why).toMatch(/^[A-Z][a-z-]+: [^.]*(\d\.\d[^.]*)*\.$/);
  });

  it('takes the simplest when a distant link makes every downtime longer than allowed', () => {
    const far = inputs(8, 1, 125);
    const distant = { ...far, costs: { ...far.costs, link: { ...far.costs.link, rtt_ms: 123 } } };
    const choice = choose({ ...distant, feasibility: all });
    expect(choice).toMatchObject({ technique: 'cold' });
    expect(choice.why).toContain('as short as it gets');
  });

  it('does not slow a service down when another technique need not', () => {
    const slowed = choose(inputs(1024, 200, 125)).rows.find((row) => row.technique === 'pre-copy')?.prediction;
    expect(slowed?.cpu_share).toBeLessThan(1);
    expect(choose(inputs(1024, 200, 125)).why).toContain('slow the service');
    expect(choose(inputs(1024, 200, 125, without('hybrid', 'post-copy'))).why).toContain('slowed to');
  });

  it('chooses what is feasible and keeps a service independent that must be, whatever the figures', () => {
    const anything = fc.record({
      mib: fc.integer({ min: 1, max: 65_536 }),
      dirty: fc.double({ min: 0, max: 2000, noNaN: true }),
      link: fc.double({ min: 0.1, max: 5000, noNaN: true }),
      independent: fc.boolean(),
      missing: fc.subarray([...TECHNIQUES]),
      on_stall: fc.constantFrom(...ON_STALL),
    });
    fc.assert(
      fc.property(anything, ({ mib, dirty, link, independent, missing, on_stall }) => {
        const goals = { max_downtime_ms: 300, max_rounds: 30, on_stall };
        const choice = choose(inputs(mib, dirty, link, { ...without(...missing), independent, goals }));
        if (choice.technique === undefined) return;
        expect(missing).not.toContain(choice.technique);
        expect(independent && isDependent(choice.technique)).toBe(false);
        for (const { prediction } of choice.rows) expect(prediction?.total_ms ?? 1).toBeGreaterThan(0);
      }),
    );
  });

  it('never chooses what is not feasible, and says why not', () => {
    for (const technique of TECHNIQUES) {
      const choice = choose(inputs(1024, 10, 125, without(technique)));
      expect(choice.technique).not.toBe(technique);
      const row = choice.rows.find((each) => each.technique === technique);
      expect(row).toMatchObject({ feasible: false, note: `no ${technique} here`, prediction: null });
    }
    expect(choose(inputs(1, 1, 1, without(...TECHNIQUES))).technique).toBeUndefined();
  });

  it('predicts every technique', () => {
    const { rows } = choose(inputs(1024, 10, 125));
    expect(rows.map((row) => row.technique)).toEqual([...TECHNIQUES]);
    const of = (technique: Technique) => rows.find((row) => row.technique === technique)?.prediction;
    const [cold, precopy, postcopy, hybrid] = TECHNIQUES.map(of);
    expect(cold?.downtime_ms).toBeGreaterThan(8000);
    expect(cold?.downtime_ms).toBeLessThan(10_000);
    expect(precopy?.downtime_ms).toBeLessThan(300);
    expect(postcopy?.downtime_ms).toBeLessThan(300);
    expect(postcopy?.degraded_ms).toBeGreaterThan(8000);
    expect((hybrid?.degraded_ms ?? 0) * 3).toBeLessThan(postcopy?.degraded_ms ?? 0);
    expect(cold?.bytes).toBeCloseTo(2 ** 30, -6);
  });
});
