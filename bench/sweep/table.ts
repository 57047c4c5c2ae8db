import { TECHNIQUES } from '../cases.ts';
import { summarise } from '../measure/statistics.ts';
import { linePlot, type Point } from '../plot/lines.ts';
import { LINK_NAMES, LINKS, type SweepCell } from './plan.ts';

/** What is kept of a cell: the figures, not the whole journal, because there are thousands. */
export interface SweepResult extends SweepCell {
  at: number;
  downtime_ms: number;
  total_ms: number;
  bytes_on_wire: number;
  rounds: number;
  stalls: number;
  longest_stall_ms: number;
  late_share: number;
  /** Null when it was not seen to run as before while it was watched. */
  full_speed_ms: number | null;
  watched_ms: number;
  continuous: boolean;
  memory_ok: boolean;
}

const COLUMNS = [
  'engine',
  'link',
  'mib',
  'dirty_percent',
  'dirty_kb_s',
  'technique',
  'compressible',
  'repetition',
  'at',
  'downtime_ms',
  'total_ms',
  'bytes_on_wire',
  'rounds',
  'stalls',
  'longest_stall_ms',
  'late_share',
  'full_speed_ms',
  'watched_ms',
  'continuous',
  'memory_ok',
] as const satisfies readonly (keyof SweepResult)[];

export function csvOf(results: readonly SweepResult[]): string {
  const rows = results.map((result) => COLUMNS.map((column) => String(result[column] ?? '')).join(','));
  return `${[COLUMNS.join(','), ...rows].join('\n')}\n`;
}

interface Figure {
  name: string;
  y: string;
  value: (result: SweepResult) => number;
}

const FIGURES: readonly Figure[] = [
  { name: 'downtime', y: 'downtime, seconds', value: (one) => one.downtime_ms / 1000 },
  { name: 'total', y: 'total time, seconds', value: (one) => one.total_ms / 1000 },
  { name: 'wire', y: 'bytes on the wire / memory', value: (one) => one.bytes_on_wire / (one.mib * 1024 * 1024) },
  // At least a millisecond, because a logarithm has no zero.
  {
    name: 'degraded',
    y: 'seconds until it ran as before',
    value: (one) => Math.max(1, one.full_speed_ms ?? one.watched_ms) / 1000,
  },
];

/** For each figure one plot over memory and one over dirtying, the other being the middle of what was measured. */
export function sweepPlots(results: readonly SweepResult[]): Record<string, string> {
  const dirty = middle(results.map((one) => one.dirty_percent));
  return Object.fromEntries(
    FIGURES.flatMap((figure) => [
      [
        `${figure.name}-by-memory.svg`,
        plotOf(
          results.filter((one) => one.dirty_percent === dirty),
          figure,
          {
            title: `${capital(figure.name)} by memory, writing at ${dirty} % of the link's rate`,
            x: 'MiB of memory',
            of: (one) => one.mib,
          },
        ),
      ],
      [
        `${figure.name}-by-dirtying.svg`,
        plotOf(
          results.filter((one) => one.mib === middleOfLink(results, one.link)),
          figure,
          {
            title: `${capital(figure.name)} by how fast the service writes`,
            x: "written, percent of the link's rate",
            of: (one) => one.dirty_percent,
          },
        ),
      ],
    ]),
  );
}

function plotOf(
  results: readonly SweepResult[],
  figure: Figure,
  axis: { title: string; x: string; of: (one: SweepResult) => number },
): string {
  const links = LINK_NAMES.filter((link) => results.some((one) => one.link === link));
  const techniques = [...new Set(results.map((one) => one.technique))];
  const repetitions = Math.max(0, ...results.map((one) => one.repetition));
  const sizes = [...new Set(results.map((one) => one.mib))].toSorted((a, b) => a - b);
  return linePlot({
    title: axis.title,
    subtitle: `medians of up to ${repetitions} with least and most; ${sizes.join(', ')} MiB; a line ends where a run would take too long`,
    x: axis.x,
    y: `${figure.y} (logarithmic)`,
    log: true,
    palette: TECHNIQUES,
    panels: links.map((link) => ({
      name: `${link}: ${LINKS[link].rate === 'max' ? 'no limit' : LINKS[link].rate}, ${Math.round(2 * LINKS[link].delay_ms)} ms`,
      series: techniques.map((technique) => {
        const own = results.filter((one) => one.link === link && one.technique === technique);
        return { name: technique, points: pointsOf(own, axis.of, figure.value) };
      }),
    })),
  });
}

function pointsOf(
  results: readonly SweepResult[],
  x: (one: SweepResult) => number,
  y: (one: SweepResult) => number,
): Point[] {
  return [...new Set(results.map(x))].map((at) => {
    const { median, min, max } = summarise(results.filter((one) => x(one) === at).map(y));
    return { x: at, y: median, low: min, high: max };
  });
}

function middleOfLink(results: readonly SweepResult[], link: string): number {
  return middle(results.filter((one) => one.link === link).map((one) => one.mib));
}

function middle(values: readonly number[]): number {
  const sorted = [...new Set(values)].toSorted((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? 0;
}

function capital(word: string): string {
  return word.charAt(0).toUpperCase() + word.slice(1);
}
