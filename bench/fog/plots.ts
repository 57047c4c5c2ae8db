import { type Technique, TECHNIQUES } from '../cases.ts';
import { mean, summarise } from '../measure/statistics.ts';
import { type Bar, barPlot } from '../plot/bars.ts';
import { type FogRun, METRICS, type NineMetrics } from './metrics.ts';
import { CONFIGURATIONS, type ConfigurationName } from './paper.ts';

/** Plots like the paper's figures 7 to 11: total time by phases, downtime, data by phases, and the phases themselves. */
export function fogPlots(runs: readonly FogRun[], subtitle: string): Record<string, string> {
  return {
    'total.svg': barPlot({
      title: 'Total migration time and its phases',
      subtitle,
      y: 'seconds',
      order: [...PHASES.map(nameOf), REST],
      groups: groups(runs, (own) => stacked(own, PHASES, 1000, (run) => run.total_ms, REST)),
    }),
    'downtime.svg': barPlot({
      title: 'Downtime',
      subtitle,
      y: 'seconds (logarithmic)',
      log: true,
      palette: TECHNIQUES,
      groups: groups(runs, (own, name) => single(own, name, (run) => run.downtime_ms / 1000)),
    }),
    'data.svg': barPlot({
      title: 'Data that travelled, by phase',
      subtitle,
      y: 'MB',
      order: SIZES.map(nameOf),
      groups: groups(runs, (own) => stacked(own, SIZES, 1e6, (run) => run.bytes)),
    }),
    'dump.svg': barPlot({
      title: 'Time from the freeze until the destination had what it needs',
      subtitle,
      y: 'seconds (logarithmic)',
      log: true,
      palette: TECHNIQUES,
      groups: groups(runs, (own, name) =>
        single(own, name, ({ metrics }) => (metrics.dump_ms + metrics.dump_transfer_ms) / 1000),
      ),
    }),
    'degraded.svg': barPlot({
      title: 'Time after the downtime until the service ran as before',
      subtitle: `${subtitle}; runc + rsync was not watched`,
      y: 'seconds',
      palette: TECHNIQUES,
      groups: groups(
        runs.filter((run) => run.degraded_ms !== null),
        (own, name) => single(own, name, (run) => (run.degraded_ms ?? 0) / 1000),
      ),
    }),
  };
}

const PHASES = METRICS.filter((metric) => metric.unit === 's').map((metric) => metric.key);
const SIZES = METRICS.filter((metric) => metric.unit === 'MB').map((metric) => metric.key);

const REST = 'before, between and after';

function nameOf(key: keyof NineMetrics): string {
  return METRICS.find((metric) => metric.key === key)?.name ?? key;
}

type Parts = Pick<Bar, 'parts' | 'low' | 'high'>;

function groups(runs: readonly FogRun[], barOf: (own: readonly FogRun[], name: string) => Parts) {
  return CONFIGURATIONS.filter((name) => runs.some((run) => run.configuration === name)).map((name) => ({
    name,
    bars: kinds(runs).flatMap(({ by, technique }) => {
      const own = of(runs, name, by, technique);
      const title = by === 'ums' ? technique : `${technique}, ${by}`;
      return own.length === 0 ? [] : [{ name: title, ...barOf(own, title) }];
    }),
  }));
}

export function kinds(runs: readonly FogRun[]): { by: FogRun['by']; technique: Technique }[] {
  return (['ums', 'runc + rsync'] as const).flatMap((by) =>
    TECHNIQUES.filter((technique) => runs.some((run) => run.by === by && run.technique === technique)).map(
      (technique) => ({
        by,
        technique,
      }),
    ),
  );
}

export function of(runs: readonly FogRun[], name: ConfigurationName, by: FogRun['by'], technique: Technique): FogRun[] {
  return runs.filter((run) => run.configuration === name && run.by === by && run.technique === technique);
}

function single(own: readonly FogRun[], name: string, value: (run: FogRun) => number): Parts {
  const { median, min, max } = summarise(own.map(value));
  return { parts: [{ name, value: median }], low: min, high: max };
}

/** Means, because parts of medians do not add up to a median. */
function stacked(
  own: readonly FogRun[],
  keys: readonly (keyof NineMetrics)[],
  unit: number,
  whole: (run: FogRun) => number,
  rest?: string,
): Parts {
  const parts = keys.map((key) => ({
    name: nameOf(key),
    value: mean(own.map((run) => run.metrics[key])) / unit,
  }));
  const all = own.map((run) => whole(run) / unit);
  const told = parts.reduce((sum, part) => sum + part.value, 0);
  const others = rest === undefined ? [] : [{ name: rest, value: Math.max(0, mean(all) - told) }];
  return {
    parts: [...parts, ...others].filter((part) => part.value > 0),
    low: Math.min(...all),
    high: Math.max(...all),
  };
}
