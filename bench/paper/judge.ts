import { formatTable } from '#src/cli/format.ts';
import { type Approach, APPROACHES } from '../matrix/plan.ts';
import { mean, median } from '../measure/statistics.ts';
import { type BarPlot } from '../plot/bars.ts';
import { type LinePlot } from '../plot/lines.ts';
import { atMost, type BenchCheck } from '../report.ts';
import { PHASES } from './phases.ts';
import { nameOf, type Route } from './plan.ts';
import type { Measured, Run } from './stage.ts';

/** Runs of one route at one point. */
export interface Group extends Route {
  at: number;
  runs: readonly Run[];
}

export type Figure = 'runs_ms' | 'total_ms' | 'command_ms' | 'downtime_ms';

export function grouped(runs: readonly Run[]): Group[] {
  const groups = new Map<string, Run[]>();
  for (const run of runs) {
    const key = [APPROACHES.indexOf(run.approach), run.from, run.to, run.at].join(' ');
    groups.set(key, [...(groups.get(key) ?? []), run]);
  }
  return [...groups.values()].flatMap((own) => {
    const [first] = own;
    if (first === undefined) return [];
    const { approach, from, to, at } = first;
    return [{ approach, from, to, at, runs: own }];
  });
}

export function secondsOf({ runs }: Pick<Group, 'runs'>, figure: Figure): number {
  return median(runs.map((run) => run[figure])) / 1000;
}

export function correctness({ runs, failures }: Pick<Measured, 'runs' | 'failures'>): BenchCheck[] {
  return [
    atMost('moves that failed', failures.length, 0),
    atMost('moves after which something was wrong', runs.filter(({ problems }) => problems.length > 0).length, 0),
  ];
}

export const shown = (seconds: number): string => (seconds < 99.95 ? seconds.toFixed(2) : seconds.toFixed(1));

function spread({ runs }: Group, figure: Figure): string {
  const all = runs.map((run) => run[figure] / 1000);
  return `${shown(Math.min(...all))} – ${shown(Math.max(...all))}`;
}

/** Each group in a line, beside what the paper has for it ('' where it has nothing). */
export function tableOf(
  runs: readonly Run[],
  varied: string | undefined,
  compared: Figure,
  paper: (group: Group) => string,
): string {
  const seconds = (figure: Figure) => (group: Group) => shown(secondsOf(group, figure));
  const titles: Record<Figure, string> = {
    runs_ms: 'runs s',
    total_ms: 'done s',
    command_ms: 'command s',
    downtime_ms: 'away s',
  };
  const figures = (['runs_ms', 'total_ms', 'downtime_ms'] as const).map((figure) => ({
    title: titles[figure],
    value: seconds(figure),
    align: 'right' as const,
  }));
  return formatTable<Group>(
    [
      { title: 'approach', value: ({ approach }) => approach },
      { title: 'systems', value: nameOf },
      ...(varied === undefined
        ? []
        : [{ title: varied, value: ({ at }: Group) => String(at), align: 'right' as const }]),
      { title: 'technique', value: (group) => [...new Set(group.runs.map(({ technique }) => technique))].join(', ') },
      ...figures,
      { title: `${titles[compared].replace(/ s$/, '')}: spread`, value: (group) => spread(group, compared) },
      { title: 'paper s', value: paper, align: 'right' },
    ],
    grouped(runs),
    120,
  );
}

/** Who ran it where, as plots name it. */
const seriesName = (route: Route): string => `${route.approach}, ${nameOf(route)}`;

/** How a figure grows with what is varied, a panel for each approach, ours beside the paper's. */
export function growthPlot(
  runs: readonly Run[],
  words: { title: string; subtitle: string; x: string; y: string },
  figure: Figure,
  paper: Record<number, Record<Approach, number>>,
): LinePlot {
  const groups = grouped(runs);
  const names = [...new Set(groups.map(seriesName))];
  return {
    ...words,
    log: true,
    panels: names.map((name) => {
      const own = groups.filter((group) => seriesName(group) === name);
      const approach = own[0]?.approach ?? 'orchestrator-level';
      const measured = own.map((group) => {
        const all = group.runs.map((run) => run[figure] / 1000);
        return { x: group.at, y: secondsOf(group, figure), low: Math.min(...all), high: Math.max(...all) };
      });
      const told = Object.entries(paper).map(([at, values]) => {
        const value = values[approach];
        return { x: Number(at), y: value, low: value, high: value };
      });
      return {
        name,
        series: [
          { name: 'ums', points: measured },
          { name: "the paper's prototype", points: told },
        ],
      };
    }),
    palette: ['ums', "the paper's prototype"],
  };
}

/** Where the time goes: means, because parts of medians do not add up to a median. */
export function phasesPlot(
  runs: readonly Run[],
  words: { title: string; subtitle: string },
  unit: (at: number) => string,
): BarPlot {
  const groups = grouped(runs);
  const points = [...new Set(groups.map(({ at }) => at))].toSorted((a, b) => a - b);
  return {
    ...words,
    y: 'seconds, stacked by phase',
    order: PHASES,
    palette: PHASES,
    groups: points.map((at) => ({
      name: unit(at),
      bars: groups
        .filter((group) => group.at === at)
        .map((group) => {
          const totals = group.runs.map(({ total_ms }) => total_ms / 1000);
          const parts = PHASES.map((name) => ({
            name,
            value: mean(group.runs.map(({ phases }) => phases[name])) / 1000,
          }));
          return {
            name: seriesName(group),
            parts: parts.filter(({ value }) => value > 0),
            low: Math.min(...totals),
            high: Math.max(...totals),
          };
        }),
    })),
  };
}

/** The phases as text, for whoever has no plot before the eyes. Seconds, means. */
export function phasesTable(runs: readonly Run[], varied: string): string {
  return formatTable<Group>(
    [
      { title: 'approach', value: ({ approach }) => approach },
      { title: varied, value: ({ at }) => String(at), align: 'right' },
      ...PHASES.map((phase) => ({
        title: phase,
        value: ({ runs: own }: Group) => shown(mean(own.map(({ phases }) => phases[phase])) / 1000),
        align: 'right' as const,
      })),
    ],
    grouped(runs),
    120,
  );
}
