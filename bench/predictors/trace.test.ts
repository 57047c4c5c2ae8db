import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { growForest } from './forest.ts';
import { replay } from './replay.ts';
import { differentPages, readTraces, type Trace } from './trace.ts';

const trace: Trace = {
  name: 'made up',
  what: 'two pages written in every window, one in every other, and new ones',
  window_ms: 50,
  present_pages: 100,
  ages: [0, 1, 2, 3, 4],
  windows: [
    [0, 3],
    [1, 2],
    [1, 2, 2, 1],
    [1, 2, 0, 5],
    [1, 2, 2, 1],
  ],
};

describe('traces', () => {
  it('count every page once between two windows', () => {
    expect(differentPages(trace, -1, 4)).toBe(3 + 5);
    expect(differentPages(trace, 0, 1)).toBe(2);
    expect(differentPages(trace, 0, 2)).toBe(3);
    expect(differentPages(trace, 1, 4)).toBe(8);
    expect(differentPages(trace, 3, 4)).toBe(3);
  });

  it('of memhog say what its arithmetic says', () => {
    const wide = readTraces(join(import.meta.dirname, '..', 'traces')).find(({ name }) => name === 'memhog-wide');
    if (wide === undefined) throw new Error('no trace memhog-wide');
    for (const seconds of [0.5, 2, 8]) {
      const rate = 4850;
      const expected = wide.present_pages * (1 - Math.exp((-rate * seconds) / wide.present_pages));
      expect(Math.abs(differentPages(wide, 20, 20 + seconds * 20) / expected - 1)).toBeLessThan(0.1);
    }
  });

  it('are replayed as migrations whose rounds follow one another', () => {
    for (const { seen, interval_ms } of replay(trace)) {
      expect(seen.length).toBeGreaterThan(0);
      expect(interval_ms).toBeGreaterThanOrEqual(50);
    }
  });
});

describe('forest', () => {
  it('learns a step', () => {
    const examples = Array.from({ length: 400 }, (_, at) => ({ features: [at, 1], target: at < 200 ? -1 : 1 }));
    const predict = growForest(examples);
    expect(predict([20, 1])).toBeLessThan(-0.8);
    expect(predict([380, 1])).toBeGreaterThan(0.8);
  });
});
