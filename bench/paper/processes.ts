import { z } from 'zod';
import { whole, wholeList } from '../flags.ts';
import { barPlot } from '../plot/bars.ts';
import { linePlot } from '../plot/lines.ts';
import type { Bench } from '../registry.ts';
import { atMost, type BenchCheck } from '../report.ts';
import { type Figures, readFigures } from './figures.ts';
import { correctness, type Group, grouped, growthPlot, phasesPlot, secondsOf, shown, tableOf } from './judge.ts';
import { processesOf } from './plan.ts';
import { measurePoints, type Measured, withPaperOptions } from './stage.ts';

const COUNTS = [1, 2, 4, 8];
/** A service of many processes may take so much longer than one of a single process. */
const LONGER = 1.5;

export const processes: Bench = {
  name: 'processes',
  what: "the paper's processes: total time of a service of 1 to 8 processes, by each approach",
  examples: ['processes', 'processes --counts 1,8 --approach service-level --repeat 5', 'processes --engine podman'],
  repeat: 2,
  options: (command) =>
    withPaperOptions(command, ['kubernetes'], readFigures().rate)
      .option('--counts <n,…>', 'processes', wholeList(1, 256), COUNTS)
      .option('--size <MiB>', 'memory of each process', whole(0, 4096), 1),
  run: async (report, options) => {
    const { counts, size } = z.object({ counts: z.array(z.int()), size: z.int() }).parse(options.flags);
    const figures = readFigures();
    report.say(`Beside it: ${figures.source}; ${figures.machine}.\n`);
    const points = counts.map((count) => ({ at: count, title: `${count} processes`, work: processesOf(count, size) }));
    const measured = await measurePoints(report, options, points);
    const { runs, failures, link } = measured;
    report.say(`\n${tableOf(runs, 'processes', 'total_ms', (group) => paperOf(group, figures))}`);
    const subtitle = `${size} MiB each; medians of ${options.repeat}, least to most. The paper: other machines, next to no memory`;
    const words = { title: 'Total time by processes', subtitle, x: 'processes', y: 'seconds (logarithmic)' };
    const total = linePlot(growthPlot(runs, words, 'total_ms', figures.processes));
    const where = { title: 'Where the total time goes', subtitle: `${size} MiB each; means of ${options.repeat}` };
    const steps = barPlot(phasesPlot(runs, where, (count) => `${count}`));
    for (const [ending, drawn] of Object.entries({ 'total.svg': total, 'steps.svg': steps })) {
      report.say(`Plot: ${await options.results.beside(ending, drawn)}`);
    }
    return {
      checks: judge(measured),
      figures: { paper: figures.processes, memory_mib: size, link, runs, failures },
    };
  },
};

function paperOf({ approach, at }: Group, { processes: paper }: Figures): string {
  const value = paper[at]?.[approach];
  return value === undefined ? '' : shown(value);
}

/** By the command alone: that the receiving container is started takes the same for any number, and would hide a difference. */
export function judge(measured: Pick<Measured, 'runs' | 'failures'>): BenchCheck[] {
  const groups = grouped(measured.runs).filter(({ approach }) => approach === 'service-level');
  const most = Math.max(...groups.map(({ at }) => at));
  const compared = groups
    .filter(({ at }) => at === most && most > 1)
    .flatMap((many) => {
      const one = groups.find(({ at, from, to }) => at === 1 && from === many.from && to === many.to);
      if (one === undefined) return [];
      const ratio = secondsOf(many, 'command_ms') / secondsOf(one, 'command_ms');
      return [atMost(`service-level, ${many.from}: ${most} processes / one`, ratio, LONGER)];
    });
  return [...compared, ...correctness(measured)];
}
