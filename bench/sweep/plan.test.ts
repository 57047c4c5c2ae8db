import { describe, expect, it } from 'vitest';
import { planned, DEFAULTS, referenceOf } from '../downtime/plan.ts';
import { cellsOf, DEFAULT_GRID, keyOf } from './plan.ts';
import { csvOf, type SweepResult, sweepPlots } from './table.ts';

const GRID = { ...DEFAULT_GRID, engine: 'runc', repeat: 2, compressible: false } as const;

describe('grid of a sweep', () => {
  it('leaves out what would take too long and says so', () => {
    const { cells, left_out } = cellsOf(GRID);
    expect(left_out).toContainEqual({ link: 'mobility', mib: 4096, seconds: expect.closeTo(3030, 0) });
    expect(cells.some((cell) => cell.link === 'mobility' && cell.mib === 4096)).toBe(false);
    expect(cellsOf({ ...GRID, limit_s: 100_000 }).cells).toHaveLength(4 * 4 * 5 * 4 * 2);
  });

  it('dirties by the share of the link, and names every cell apart', () => {
    const { cells } = cellsOf(GRID);
    expect(cells.find((cell) => cell.link === 'lan' && cell.dirty_percent === 200)?.dirty_kb_s).toBe(250_000);
    expect(new Set(cells.map(keyOf)).size).toBe(cells.length);
  });

  it('becomes a table and plots', () => {
    const results = cellsOf(GRID).cells.map(
      (cell): SweepResult => ({
        ...cell,
        at: 0,
        downtime_ms: 100,
        total_ms: 1000,
        bytes_on_wire: 5,
        rounds: 1,
        stalls: 0,
        longest_stall_ms: 2,
        late_share: 0,
        full_speed_ms: null,
        watched_ms: 3000,
        continuous: true,
        memory_ok: true,
      }),
    );
    expect(csvOf(results).split('\n')).toHaveLength(results.length + 2);
    for (const drawn of Object.values(sweepPlots(results))) expect(drawn).not.toContain('NaN');
    expect(Object.keys(sweepPlots([]))).toHaveLength(8);
  });
});

describe('plan of the downtime bench', () => {
  it('has what the figures need', () => {
    const cells = planned(DEFAULTS);
    const fast = cells.filter((cell) => cell.link === 'fast' && cell.engine === 'runc');
    expect(fast).toHaveLength(3 * 4 + 2 * 2);
    expect(cells.filter((cell) => cell.link === 'slow').map((cell) => cell.technique)).toEqual([
      'cold',
      'post-copy',
      'hybrid',
    ]);
    expect(referenceOf([64])).toBe(64);
    expect(planned({ ...DEFAULTS, all: true, slow: false })).toHaveLength(2 * 3 * 3 * 4);
  });
});
