import { TECHNIQUES, type Technique } from '../cases.ts';
import type { Engine } from '../pulse/service.ts';

/** What `bench downtime` measures: chosen so that every figure that is asked for has its data, and no more. */
export const REFERENCE_MIB = 1024;
export const SLOW_MIB = 128;

export interface Cell {
  link: 'fast' | 'slow';
  engine: Engine;
  mib: number;
  dirty_kb_s: number;
  technique: Technique;
  /** Whether the service then moves back, to see what a second move costs. */
  back: boolean;
}

export interface Choice {
  engines: readonly Engine[];
  sizes: readonly number[];
  dirty: readonly number[];
  techniques: readonly Technique[];
  /** Every combination, not only those that a figure needs. */
  all: boolean;
  slow: boolean;
}

export const DEFAULTS: Choice = {
  engines: ['runc', 'podman'],
  sizes: [128, REFERENCE_MIB, 4096],
  dirty: [0, 10_000, 50_000],
  techniques: TECHNIQUES,
  all: false,
  slow: true,
};

export function planned(choice: Choice): Cell[] {
  const reference = referenceOf(choice.sizes);
  const middle = middleOf(choice.dirty);
  const least = Math.min(...choice.dirty);
  const cells: Cell[] = [];
  for (const engine of choice.engines) {
    for (const mib of choice.sizes) {
      for (const dirty_kb_s of choice.dirty) {
        for (const technique of choice.techniques) {
          const flat = technique === 'post-copy' || technique === 'hybrid';
          const needed = mib === reference || (dirty_kb_s === middle && flat);
          const back = mib === reference && dirty_kb_s === least;
          if (needed || choice.all) cells.push({ link: 'fast', engine, mib, dirty_kb_s, technique, back });
        }
      }
    }
  }
  if (!choice.slow) return cells;
  const slow = choice.techniques.filter((technique) => technique !== 'pre-copy');
  const [engine] = choice.engines;
  if (engine === undefined) return cells;
  return [
    ...cells,
    ...slow.map((technique): Cell => ({ link: 'slow', engine, mib: SLOW_MIB, dirty_kb_s: 0, technique, back: false })),
  ];
}

/** The size at which dirtying and techniques are compared. */
export function referenceOf(sizes: readonly number[]): number {
  return sizes.includes(REFERENCE_MIB) ? REFERENCE_MIB : middleOf(sizes);
}

function middleOf(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.floor((sorted.length - 1) / 2)] ?? 0;
}
