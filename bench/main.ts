import { Command, InvalidArgumentError } from 'commander';
import { formatTable } from '#src/cli/format.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { baseline } from './baseline.ts';
import { enter } from './entry.ts';
import type { Bench, BenchOptions } from './registry.ts';
import { type BenchCheck, keepResult, machine, Reporter } from './report.ts';
import { soak } from './soak.ts';

const BENCHES: readonly Bench[] = [baseline, soak];

interface Flags {
  json: boolean;
  out?: string;
  repeat: number;
  moves: number;
  sizes?: number[];
  keep: boolean;
}

function whole(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN;
    if (value >= least && value <= most) return value;
    throw new InvalidArgumentError(`It must be a whole number from ${least} to ${most}.`);
  };
}

function sizeList(text: string): number[] {
  return text.split(',').map(whole(1, 65_536));
}

async function bench(name: string | undefined, flags: Flags): Promise<number> {
  const report = new Reporter(flags.json);
  if (name === undefined) return list(report);
  try {
    const found = BENCHES.find((each) => each.name === name);
    if (found === undefined) {
      throw new UmsError('UMS_E_USAGE', {
        message: `There is no bench "${name}".`,
        fault: 'user',
        mend: `There are: ${BENCHES.map((each) => each.name).join(', ')}.`,
      });
    }
    const began_at = Date.now();
    const options: BenchOptions = { repeat: flags.repeat, moves: flags.moves, sizes: flags.sizes, keep: flags.keep };
    const { checks, figures } = await found.run(report, options);
    return await conclude(report, flags, {
      bench: name,
      began_at,
      duration_ms: Math.round(report.elapsed_ms),
      machine: machine(),
      ...figures,
      checks,
    });
  } catch (thrown) {
    return report.failure(thrown);
  }
}

async function conclude(
  report: Reporter,
  flags: Flags,
  figures: Record<string, unknown> & { bench: string; checks: BenchCheck[] },
): Promise<number> {
  const { checks } = figures;
  const good = checks.every((check) => check.ok);
  const result = { status: good ? 'done' : 'failed', ...figures };
  const path =
    flags.out === undefined ? undefined : await keepResult(flags.out, figures.bench, { event: 'result', ...result });
  report.say(`\n${renderChecks(checks, report)}`);
  if (path !== undefined) report.say(`The result is kept in ${path}`);
  report.event('result', result);
  return good ? 0 : 1;
}

function figure(value: number): string {
  return Number.isInteger(value) ? String(value) : value.toFixed(1);
}

function renderChecks(checks: readonly BenchCheck[], report: Reporter): string {
  return formatTable(
    [
      { title: 'asked for', value: (check: BenchCheck) => check.name, least: 40 },
      { title: 'value', value: (check) => figure(check.value), align: 'right' },
      { title: 'limit', value: (check) => figure(check.limit), align: 'right' },
      { title: '', value: (check) => (check.ok ? '✔ ok' : '✗ NOT OK') },
    ],
    checks,
  ).replaceAll('✗ NOT OK', report.style.red('✗ NOT OK'));
}

function list(report: Reporter): number {
  report.event('result', { status: 'done', benches: BENCHES.map(({ name, what }) => ({ name, what })), checks: [] });
  report.say('Benches:');
  for (const { name, what } of BENCHES) report.say(`  ${name.padEnd(10)} ${what}`);
  report.say('\nExample: ./ums bench baseline --repeat 3 --out results');
  return 0;
}

const program = new Command('ums bench')
  .description('Measure ums beside what there is without it, in the same run on the same machine')
  .argument('[name]', `one of: ${BENCHES.map((each) => each.name).join(', ')}; without it, they are explained`)
  .option('--json', 'one event a line, the last with event "result"', false)
  .option('--out <directory>', 'keep the result as a JSON file there')
  .option('--repeat <n>', 'repetitions of each figure', whole(1, 1000), 3)
  .option('--moves <n>', 'soak: how many migrations', whole(2, 100_000), 50)
  .option('--sizes <mib,…>', 'MiB of state (baseline: 8,128,1024; soak: 64)', sizeList)
  .option('--keep', 'leave the test hosts running', false)
  .addHelpText(
    'after',
    '\nExamples:\n  ./ums bench baseline\n  ./ums bench soak --moves 50 --json\n\nExit status: 0 when every figure is within its limit, 1 when not.\n',
  )
  .action(async (name: string | undefined, flags: Flags) => {
    process.exitCode = await bench(name, flags);
  });
await enter(program);
