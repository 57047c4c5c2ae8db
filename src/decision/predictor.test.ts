import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type DirtyObservation, dirtyModelOf, predictDirty, priorOf } from './predictor.ts';
import { dirtyOf } from './simulator.test-support.ts';

const observations = fc.array(
  fc.record({
    interval_ms: fc.double({ min: 1, max: 1e6, noNaN: true }),
    changed_pages: fc.integer({ min: 0, max: 1e6 }),
    present_pages: fc.constant(1e6),
  }),
  { maxLength: 30 },
);
const interval = fc.double({ min: 0, max: 1e7, noNaN: true });

describe('prediction of dirty pages', () => {
  it('is a number of pages that there are, and never fewer for longer', () => {
    fc.assert(
      fc.property(observations, interval, interval, (seen, a, b) => {
        const model = predictDirty(seen);
        const [shorter, longer] = [model.pages(Math.min(a, b)), model.pages(Math.max(a, b))];
        expect(shorter).toBeGreaterThanOrEqual(0);
        expect(longer).toBeLessThanOrEqual(1e6);
        expect(shorter).toBeLessThanOrEqual(longer);
      }),
    );
  });

  it('learns that a working set is full after a while', () => {
    const truth = dirtyOf({ present_pages: 100_000, hot_share: 0.05, hot_pages_s: 50_000, cold_pages_s: 0 });
    const seen = [8000, 4000, 2000, 1000].map(
      (interval_ms): DirtyObservation => ({ interval_ms, changed_pages: truth.pages(interval_ms), present_pages: 1e5 }),
    );
    const asLastRate = (5000 / 1000) * 500;
    expect(predictDirty(seen).pages(500)).toBeGreaterThan(1.3 * asLastRate);
  });

  it('says none of a service that wrote nothing, and of one that nothing is known of', () => {
    expect(predictDirty([]).pages(1000)).toBe(0);
    expect(predictDirty([{ interval_ms: 1000, changed_pages: 0, present_pages: 100 }]).pages(1e6)).toBe(0);
  });

  it('counts the time of a throttled service as less', () => {
    const round = {
      round: 1,
      interval_ms: 1000,
      elapsed_ms: 1000,
      present_pages: 1e6,
      changed_pages: 1000,
      sent: { zero_bytes: 0, reference_bytes: 0, data_bytes: 0, wire_bytes: 0 },
      link_bytes_s: 1e6,
      rtt_ms: 1,
      scan_ms: 1,
      cpu_share: 0.5,
    };
    const first = { ...round, round: 0, interval_ms: 0 };
    expect(dirtyModelOf([first, round]).pages(500)).toBeCloseTo(1000);
    expect(dirtyModelOf([first, round]).pages(1000)).toBeGreaterThan(1000);
  });

  it('does not take a short look that saw nothing for a service that writes nothing', () => {
    // A program that writes 122 of its 18,432 pages a second, in one burst: a tenth of a second may see none of it.
    const looks: DirtyObservation[] = [35, 100].map((interval_ms) => ({
      interval_ms,
      changed_pages: 0,
      present_pages: 18_432,
    }));
    const longer: DirtyObservation = { interval_ms: 60_000, changed_pages: 6041, present_pages: 18_432 };
    expect(predictDirty(priorOf(looks, undefined)).pages(60_000)).toBe(0);
    const model = predictDirty(priorOf(looks, longer));
    expect(model.pages(60_000)).toBeCloseTo(6041, 0);
    expect(model.pages(10_000)).toBeGreaterThan(6041 / 6);
  });

  it('does not let a look that was over sooner than the others speak last', () => {
    const looks = [{ interval_ms: 100, changed_pages: 50, present_pages: 1000 }];
    expect(priorOf(looks, { interval_ms: 20, changed_pages: 0, present_pages: 1000 })).toEqual(looks);
  });
});
