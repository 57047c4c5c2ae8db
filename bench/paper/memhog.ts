import { z } from 'zod';
import { wholeList } from '../flags.ts';
import { barPlot } from '../plot/bars.ts';
import { linePlot } from '../plot/lines.ts';
import type { Bench } from '../registry.ts';
import { atMost, type BenchCheck } from '../report.ts';
import { type Figures, readFigures } from './figures.ts';
import {
  correctness,
  type Group,
  grouped,
  growthPlot,
  phasesPlot,
  phasesTable,
  secondsOf,
  shown,
  tableOf,
} from './judge.ts';
import { holding } from './plan.ts';
import { measurePoints, type Measured, withPaperOptions } from './stage.ts';

const SIZES_MIB = [0, 128, 256, 512, 1024];

export const memhog: Bench = {
  name: 'memhog',
  what: "the paper's memhog: total time by memory, 0 to 1024 MiB, by each approach, and where it goes",
  examples: ['memhog', 'memhog --sizes 0,128 --engine podman', 'memhog --approach container-level --repeat 5'],
  repeat: 1,
  options: (command) =>
    withPaperOptions(command, ['kubernetes'], readFigures().rate).option(
      '--sizes <mib,…>',
      'MiB of memory',
      wholeList(0, 65_536),
      SIZES_MIB,
    ),
  run: async (report, options) => {
    const { sizes } = z.object({ sizes: z.array(z.int()) }).parse(options.flags);
    const figures = readFigures();
    report.say(`Beside it: ${figures.source}; ${figures.machine}.\n`);
    const points = sizes.map((mib) => ({ at: mib, title: `${mib} MiB`, work: holding(mib) }));
    const measured = await measurePoints(report, options, points);
    const { runs, failures, link } = measured;
    report.say(`\n${tableOf(runs, 'MiB', 'total_ms', (group) => paperOf(group, figures))}`);
    report.say(`Seconds of each phase, means:\n${phasesTable(runs, 'MiB')}`);
    const subtitle = `incompressible memory; medians of ${options.repeat}, least to most; link ${link.rate}. The paper: other machines`;
    const words = { title: 'Total time by memory', subtitle, x: 'MiB of memory', y: 'seconds (logarithmic)' };
    const total = linePlot(growthPlot(runs, words, 'total_ms', figures.memhog));
    const where = { title: 'Where the total time goes', subtitle: `means of ${options.repeat}; link ${link.rate}` };
    const steps = barPlot(phasesPlot(runs, where, (mib) => `${mib} MiB`));
    for (const [ending, drawn] of Object.entries({ 'total.svg': total, 'steps.svg': steps })) {
      report.say(`Plot: ${await options.results.beside(ending, drawn)}`);
    }
    return { checks: judge(measured, figures), figures: { paper: figures.memhog, link, runs, failures } };
  },
};

function paperOf({ approach, at }: Group, { memhog: paper }: Figures): string {
  const value = paper[at]?.[approach];
  return value === undefined ? '' : shown(value);
}

/** Nowhere slower than the prototype was, where the paper says how long that took. */
export function judge(measured: Pick<Measured, 'runs' | 'failures'>, { memhog: paper }: Figures): BenchCheck[] {
  const compared = grouped(measured.runs).flatMap((group) => {
    const value = paper[group.at]?.[group.approach];
    if (value === undefined) return [];
    const name = `${group.approach}, ${group.at} MiB: total, s (limit: the paper's)`;
    return [atMost(name, secondsOf(group, 'total_ms'), value)];
  });
  return [...compared, ...correctness(measured)];
}
