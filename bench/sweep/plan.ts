import { type Technique, TECHNIQUES } from '../cases.ts';
import type { Engine } from '../pulse/service.ts';

/** The grid of `bench sweep`: memory × dirtying × link × technique. */
export const LINKS = {
  mobility: { rate: '11.34mbit', delay_ms: 61.5, rate_bps: 11.34e6 },
  management: { rate: '72.41mbit', delay_ms: 3.47, rate_bps: 72.41e6 },
  // The lab's cables alone take about 0.1 ms there and back.
  lan: { rate: '1gbit', delay_ms: 0, rate_bps: 1e9 },
  // Dirtying is a share of a link's rate, so this one needs a number for it: what loopback carries with TLS.
  unlimited: { rate: 'max', delay_ms: 0, rate_bps: 4e9 },
} as const;
export type LinkName = keyof typeof LINKS;
export const LINK_NAMES = ['mobility', 'management', 'lan', 'unlimited'] as const satisfies readonly LinkName[];

export interface Grid {
  engine: Engine;
  links: readonly LinkName[];
  sizes: readonly number[];
  /** Percent of the link's rate. */
  dirty: readonly number[];
  techniques: readonly Technique[];
  repeat: number;
  compressible: boolean;
  /** Cells whose memory alone would take longer than this are left out. */
  limit_s: number;
}

export interface SweepCell {
  engine: Engine;
  link: LinkName;
  mib: number;
  dirty_percent: number;
  dirty_kb_s: number;
  technique: Technique;
  compressible: boolean;
  repetition: number;
}

export const DEFAULT_GRID = {
  links: LINK_NAMES,
  sizes: [8, 128, 1024, 4096],
  dirty: [0, 25, 50, 100, 200],
  techniques: TECHNIQUES,
  limit_s: 120,
};

const MIB = 1024 * 1024;

export function leastSeconds(cell: { link: LinkName; mib: number }): number {
  return (cell.mib * MIB * 8) / LINKS[cell.link].rate_bps;
}

/** Cells in the order in which they are measured: one link after another, all repetitions of the whole interleaved. */
export function cellsOf(grid: Grid): {
  cells: SweepCell[];
  left_out: { link: LinkName; mib: number; seconds: number }[];
} {
  const cells: SweepCell[] = [];
  const left_out: { link: LinkName; mib: number; seconds: number }[] = [];
  for (const link of grid.links) {
    for (const mib of grid.sizes) {
      const seconds = leastSeconds({ link, mib });
      if (seconds > grid.limit_s) left_out.push({ link, mib, seconds });
    }
    const sizes = grid.sizes.filter((mib) => leastSeconds({ link, mib }) <= grid.limit_s);
    for (let repetition = 1; repetition <= grid.repeat; repetition += 1) {
      for (const mib of sizes) {
        for (const dirty_percent of grid.dirty) {
          const dirty_kb_s = Math.round((LINKS[link].rate_bps * dirty_percent) / 100 / 8000);
          for (const technique of grid.techniques) {
            const { engine, compressible } = grid;
            cells.push({ engine, link, mib, dirty_percent, dirty_kb_s, technique, compressible, repetition });
          }
        }
      }
    }
  }
  return { cells, left_out };
}

/** The name under which a cell's result is kept and found again. */
export function keyOf(cell: SweepCell): string {
  const memory = `${cell.mib}mib${cell.compressible ? '-compressible' : ''}`;
  return [cell.engine, cell.link, memory, `${cell.dirty_percent}percent`, cell.technique, cell.repetition].join('-');
}
