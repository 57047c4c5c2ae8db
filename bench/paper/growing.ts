import { z } from 'zod';
import { whole } from '../flags.ts';
import { barPlot } from '../plot/bars.ts';
import type { Bench } from '../registry.ts';
import { below, type BenchCheck } from '../report.ts';
import { type Figures, readFigures } from './figures.ts';
import { correctness, grouped, secondsOf, shown, tableOf } from './judge.ts';
import { growingBy } from './plan.ts';
import { measurePoints, type Measured, withPaperOptions } from './stage.ts';

const PAPER = "the paper's prototype, YOLOv3-tiny";

export const growing: Bench = {
  name: 'growing',
  what: 'downtime of a neural network whose memory grows while it computes, in place of the paper’s YOLOv3-tiny',
  examples: ['growing', 'growing --growth 16000 --start 256', 'growing --engine podman --technique pre-copy'],
  options: (command) =>
    withPaperOptions(command, ['kubernetes'], readFigures().rate)
      .option('--growth <KB/s>', 'by which its memory grows', whole(0, 100_000), 4000)
      .option('--start <MiB>', 'of memory that it has computed before it is moved', whole(0, 65_536), 64),
  run: async (report, options) => {
    const { growth, start } = z.object({ growth: z.int(), start: z.int() }).parse(options.flags);
    const figures = readFigures();
    report.say(`Beside it: ${figures.source}; ${figures.machine}.\n`);
    const title = `${start} MiB and ${growth} KB/s more`;
    const measured = await measurePoints(report, options, [{ at: start, title, work: growingBy(growth, start) }]);
    const { runs, failures, link } = measured;
    report.say(`\n${tableOf(runs, undefined, 'downtime_ms', ({ approach }) => shown(figures.growing[approach]))}`);
    const drawn = barPlot({
      title: 'Downtime of a program whose memory grows while it computes',
      subtitle: `a recurrent convolutional network, ${title}; medians of ${options.repeat}, least to most; link ${link.rate}. The paper: YOLOv3-tiny, on other machines`,
      y: 'seconds (logarithmic)',
      log: true,
      palette: ['ums', PAPER],
      groups: plotted(measured, figures),
    });
    report.say(`Plot: ${await options.results.beside('downtime.svg', drawn)}`);
    return {
      checks: judge(measured, figures),
      figures: { paper: figures.growing, growth_kb_s: growth, start_mib: start, link, runs, failures },
    };
  },
};

function plotted({ runs }: Measured, { growing: paper }: Figures) {
  return grouped(runs).map((group) => {
    const all = group.runs.map(({ downtime_ms }) => downtime_ms / 1000);
    const ours = { name: 'ums', parts: [{ name: 'ums', value: secondsOf(group, 'downtime_ms') }] };
    const theirs = paper[group.approach];
    return {
      name: `${group.approach}, ${group.from}`,
      bars: [
        { ...ours, low: Math.min(...all), high: Math.max(...all) },
        { name: PAPER, parts: [{ name: PAPER, value: theirs }], low: theirs, high: theirs },
      ],
    };
  });
}

export function judge(measured: Pick<Measured, 'runs' | 'failures'>, { growing: paper }: Figures): BenchCheck[] {
  const compared = grouped(measured.runs).map((group) => {
    const name = `${group.approach}, ${group.from}: downtime, s (limit: the prototype's)`;
    return below(name, secondsOf(group, 'downtime_ms'), paper[group.approach]);
  });
  return [...compared, ...correctness(measured)];
}
