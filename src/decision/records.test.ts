import { describe, expect, it } from 'vitest';
import { choose } from './choose.ts';
import { costsAfter, DEFAULT_COSTS, learnCosts, observedCosts } from './costs.ts';
import { freezeParts } from './freeze.ts';
import { goalsSchema, type Technique } from './model.ts';
import { type Outcome, predictionError, predictionSchema, storedPrediction, type StoredPrediction } from './records.ts';
import { dirtyOf, situationOf } from './simulator.test-support.ts';

function stored(technique: Technique, downtime_ms: number): StoredPrediction {
  return predictionSchema.parse({
    technique,
    chosen: true,
    why: 'A reason.',
    downtime_ms,
    total_ms: 1000,
    bytes: 4096,
    degraded_ms: 0,
    rounds: 0,
    inputs: {
      present_pages: 1,
      zero_share: 0,
      compress_ratio: 1,
      eager_pages: 0,
      processes: 1,
      dirty_pages_s: 0,
      link_bytes_s: 1e6,
      rtt_ms: 1,
      tracker: 'written',
      file_bytes: 0,
      costs: DEFAULT_COSTS,
      goals: goalsSchema.parse({}),
    },
  });
}
const came = (downtime_ms: number | null): Outcome => ({ downtime_ms, total_ms: 2000, bytes: 4096 });

describe('predictions beside outcomes', () => {
  it('gives the relative errors for each technique', () => {
    const [cold, hybrid, ...more] = predictionError([
      { prediction: stored('cold', 100), outcome: came(100) },
      { prediction: stored('cold', 150), outcome: came(100) },
      { prediction: stored('cold', 50), outcome: came(200) },
      { prediction: stored('hybrid', 50), outcome: came(null) },
    ]);
    expect(more).toEqual([]);
    expect(cold).toMatchObject({ technique: 'cold', migrations: 3 });
    expect(cold?.downtime).toMatchObject({ count: 3, median: 0.5, bias: 0 });
    expect(cold?.downtime?.p90).toBeCloseTo(0.7);
    expect(cold?.total).toMatchObject({ median: 0.5, bias: -0.5 });
    expect(cold?.bytes).toMatchObject({ median: 0, p90: 0 });
    expect(hybrid).toMatchObject({ technique: 'hybrid', migrations: 1, downtime: null });
  });

  it('keeps a prediction in the form that the journal reads', () => {
    const feasible = { feasible: true } as const;
    const costs = {
      situation: situationOf(50_000),
      link: { bytes_s: 1e7, rtt_ms: 1, path_bytes_s: 1e9 },
      zero_share: 0.1,
      compress_ratio: 0.7,
      dirty: dirtyOf({ present_pages: 50_000, hot_share: 0.1, hot_pages_s: 500, cold_pages_s: 1 }),
      file_bytes: 1000,
    };
    const goals = goalsSchema.parse({});
    const feasibility = { cold: feasible, 'pre-copy': feasible, 'post-copy': feasible, hybrid: feasible };
    const { rows, why } = choose({ feasibility, costs, goals });
    for (const { prediction } of rows) {
      if (prediction === null) throw new Error('not predicted');
      const kept = storedPrediction(prediction, costs, goals, { chosen: true, why });
      expect(predictionSchema.parse(JSON.parse(JSON.stringify(kept)))).toEqual(kept);
    }
  });

  it('refuses a prediction of another shape', () => {
    expect(predictionSchema.safeParse({ ...stored('cold', 1), downtime_ms: -1 }).success).toBe(false);
    expect(predictionSchema.safeParse({ ...stored('cold', 1), technique: 'warm' }).success).toBe(false);
  });
});

function look(present_pages: number, tracker: 'hash' | 'written') {
  return observedCosts({ processes: 1, present_pages, scan_ms: 100, tracker }, DEFAULT_COSTS);
}

describe('fixed costs', () => {
  it('come near what is seen again and again', () => {
    let costs = DEFAULT_COSTS;
    for (let each = 0; each < 20; each += 1) costs = learnCosts(costs, { restore_ms: 400, hash_bytes_s: 4e9 });
    expect(costs.restore_ms).toBeCloseTo(400, -1);
    expect(costs.hash_bytes_s).toBeCloseTo(4e9, -8);
    expect(costs.dump_ms).toBe(DEFAULT_COSTS.dump_ms);
  });

  it('of services of any size teach the same', () => {
    const truth = { ...DEFAULT_COSTS, dump_ms: 200, restore_ms: 60 };
    const seen = [1, 40, 7, 120, 3, 15, 1, 9, 22, 4, 60, 2].map((processes, at) => {
      const parts = freezeParts(
        { ...situationOf(at * 20_000), processes, costs: truth },
        { bytes_s: 1e8, rtt_ms: 1, path_bytes_s: 1e9 },
        { pages: 0, travel_ratio: 1, check: false },
      );
      const { dump_ms, restore_ms } = parts;
      return observedCosts({ processes, present_pages: at * 20_000, dump_ms, restore_ms }, DEFAULT_COSTS);
    });
    const learnt = costsAfter(seen);
    expect(Math.abs(learnt.dump_ms - 200)).toBeLessThan(10);
    expect(Math.abs(learnt.restore_ms - 60)).toBeLessThan(10);
  });

  it('of looking through memory are learnt from large ones only', () => {
    expect(look(100, 'hash')).toEqual({});
    expect(look(2 ** 18, 'hash').hash_bytes_s).toBeCloseTo(2 ** 30 * 10);
    expect(look(2 ** 18, 'written')).toEqual({ scan_ms_per_gib: 100 });
  });

  it('are not thrown over by one odd migration, or by nonsense', () => {
    const odd = learnCosts(DEFAULT_COSTS, { restore_ms: 60_000, dump_ms: Number.NaN, process_ms: -3 });
    expect(odd.restore_ms).toBeLessThan(2 * DEFAULT_COSTS.restore_ms);
    expect(odd).toMatchObject({ dump_ms: DEFAULT_COSTS.dump_ms, process_ms: DEFAULT_COSTS.process_ms });
  });
});
