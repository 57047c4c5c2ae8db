import { z } from 'zod';
import { whole } from '../flags.ts';
import type { Bench } from '../registry.ts';
import { atLeast, type BenchCheck } from '../report.ts';
import { type Figures, readFigures } from './figures.ts';
import { correctness, type Group, grouped, secondsOf, shown, tableOf } from './judge.ts';
import { holding } from './plan.ts';
import { measurePoints, type Measured, withPaperOptions } from './stage.ts';

/** The system that the paper's table goes to, and the one of its sources that the lab has. */
const PAPER_SYSTEM = 'kubernetes';
const FASTER = 5;
const PAPER_MIB = 128;

export const table1: Bench = {
  name: 'table1',
  what: "the paper's Table I: from the request until a service of 128 MiB runs at the destination, by each approach",
  examples: [
    'table1',
    'table1 --approach orchestrator-level,container-level --engine kubernetes,podman',
    'table1 --repeat 10',
  ],
  options: (command) =>
    withPaperOptions(command, [PAPER_SYSTEM], readFigures().rate).option(
      '--size <MiB>',
      'memory of the service',
      whole(0, 65_536),
      PAPER_MIB,
    ),
  run: async (report, options) => {
    const { size } = z.object({ size: z.int() }).parse(options.flags);
    const figures = readFigures();
    report.say(`Beside it: ${figures.source}; ${figures.machine}.\n`);
    const measured = await measurePoints(report, options, [{ at: size, title: `${size} MiB`, work: holding(size) }]);
    const { runs, failures, link } = measured;
    report.say(`\n${tableOf(runs, undefined, 'runs_ms', (group) => paperOf(group, figures))}`);
    report.say(explained(figures));
    return {
      checks: judge(measured, figures),
      figures: { paper: figures.table1, memory_mib: size, link, runs, failures },
    };
  },
};

/** Only what moved between systems that the paper has, too, is compared; beside the others stands what it has. */
function isCompared({ from, to, at }: Group): boolean {
  return from === PAPER_SYSTEM && to === PAPER_SYSTEM && at === PAPER_MIB;
}

function paperOf(group: Group, figures: Figures): string {
  const value = figures.table1[group.approach][PAPER_SYSTEM];
  if (value === undefined || value === null) return 'infeasible';
  return isCompared(group)
    ? `${shown(value)} (${(value / secondsOf(group, 'runs_ms')).toFixed(1)} ×)`
    : `(${shown(value)})`;
}

function explained({ table1: table }: Figures): string {
  const rows = Object.entries(table).map(([approach, systems]) => {
    const told = Object.entries(systems).map(([name, value]) => `${name} ${value === null ? '–' : shown(value)}`);
    return `  ${approach}: ${told.join(', ')}`;
  });
  return [
    'runs: from the request until all of the service runs at the destination, which is what the paper gives. done: until the',
    'command has ended. In brackets: the paper has it for Kubernetes only, so it is not compared. By its source, to Kubernetes:',
    ...rows,
  ].join('\n');
}

export function judge(measured: Pick<Measured, 'runs' | 'failures'>, { table1: table }: Figures): BenchCheck[] {
  const faster = grouped(measured.runs)
    .filter(isCompared)
    .flatMap((group) => {
      const paper_s = table[group.approach][PAPER_SYSTEM];
      if (paper_s === undefined || paper_s === null) return [];
      const times = paper_s / secondsOf(group, 'runs_ms');
      return [atLeast(`${group.approach}, Kubernetes: the paper's time / ours`, times, FASTER)];
    });
  return [...faster, ...correctness(measured)];
}
