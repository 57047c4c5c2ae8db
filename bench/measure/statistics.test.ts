import { describe, expect, it } from 'vitest';
import { ci95, known, mean, median, summarise } from './statistics.ts';

describe('statistics', () => {
  it('finds the middle, the mean and the spread', () => {
    expect([median([3, 1, 2]), median([4, 1, 2, 3]), median([])]).toEqual([2, 2.5, 0]);
    expect([mean([1, 2, 6]), mean([])]).toEqual([3, 0]);
    expect(summarise([5, 1, 3])).toMatchObject({ n: 3, median: 3, min: 1, max: 5, mean: 3 });
    expect(summarise([])).toEqual({ n: 0, median: 0, min: 0, max: 0, mean: 0, ci95: 0 });
    expect(known([1, null, undefined, 0])).toEqual([1, 0]);
  });

  it('gives the confidence interval of Student, not of the normal distribution', () => {
    // Five values, standard deviation √2.5: 2.776 · √(2.5 / 5).
    expect(ci95([1, 2, 3, 4, 5])).toBeCloseTo(1.963, 3);
    expect(ci95([7])).toBe(0);
    expect(ci95([2, 2, 2])).toBe(0);
  });
});
