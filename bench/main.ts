import { join, resolve } from 'node:path';
import { Command } from 'commander';
import { z } from 'zod';
import { formatTable } from '#src/cli/format.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { baseline } from './baseline.ts';
import { downtime } from './downtime/bench.ts';
import { enter } from './entry.ts';
import { whole } from './flags.ts';
import { fog } from './fog/bench.ts';
import { matrix } from './matrix/bench.ts';
import { pagePath } from './page-path/bench.ts';
import { growing } from './paper/growing.ts';
import { memhog } from './paper/memhog.ts';
import { processes } from './paper/processes.ts';
import { table1 } from './paper/table1.ts';
import { predictors } from './predictors.ts';
import type { Bench, BenchOptions } from './registry.ts';
import { type BenchCheck, machine, Reporter } from './report.ts';
import { Results } from './results.ts';
import { soak } from './soak.ts';
import { sweep } from './sweep/bench.ts';

const BENCHES: readonly Bench[] = [
  baseline,
  downtime,
  fog,
  growing,
  matrix,
  memhog,
  pagePath,
  predictors,
  processes,
  soak,
  sweep,
  table1,
];
const RESULTS = join(resolve(import.meta.dirname), 'results');

const commonSchema = z.object({ json: z.boolean(), out: z.string(), repeat: z.int(), keep: z.boolean() });

async function run(bench: Bench, flags: Record<string, unknown>): Promise<number> {
  const common = commonSchema.parse(flags);
  const report = new Reporter(common.json);
  const began_at = Date.now();
  const results = new Results(common.out, bench.name, began_at);
  const interrupt = new AbortController();
  const onSignal = (): void => {
    if (!interrupt.signal.aborted) process.stderr.write('\nInterrupted: cleaning up …\n');
    interrupt.abort();
  };
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, onSignal);
  try {
    const options: BenchOptions = { ...common, signal: interrupt.signal, results, flags };
    const { checks, figures } = await bench.run(report, options);
    const duration_ms = Math.round(report.elapsed_ms);
    return await conclude(report, results, {
      bench: bench.name,
      began_at,
      duration_ms,
      machine: machine(),
      ...figures,
      checks,
    });
  } catch (thrown) {
    return report.failure(interrupt.signal.aborted ? cancelled() : thrown);
  } finally {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.off(signal, onSignal);
  }
}

function cancelled(): UmsError {
  return new UmsError('UMS_E_CANCELLED', {
    message: 'The bench was interrupted.',
    fault: 'user',
    state: 'What it had started was taken away again. What it had measured is kept.',
  });
}

async function conclude(
  report: Reporter,
  results: Results,
  figures: Record<string, unknown> & { checks: BenchCheck[] },
): Promise<number> {
  const { checks } = figures;
  const good = checks.every((check) => check.ok);
  const result = { status: good ? 'done' : 'failed', ...figures };
  const path = await results.whole({ event: 'result', ...result });
  if (checks.length > 0) report.say(`\n${renderChecks(checks, report)}`);
  report.say(`The result is kept in ${path}`);
  report.event('result', result);
  return good ? 0 : 1;
}

function figure(value: number): string {
  return Number.isInteger(value) ? String(value) : value.toFixed(Math.abs(value) < 10 ? 2 : 1);
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
    100,
  ).replaceAll('✗ NOT OK', report.style.red('✗ NOT OK'));
}

function list(report: Reporter): number {
  report.event('result', { status: 'done', benches: BENCHES.map(({ name, what }) => ({ name, what })), checks: [] });
  report.say('Benches:');
  for (const { name, what } of BENCHES) report.say(`  ${name.padEnd(10)} ${what}`);
  report.say('\nExample: ./ums bench baseline --repeat 3\nEach explains itself: ./ums bench NAME --help');
  return 0;
}

function commandOf(bench: Bench): Command {
  const command = new Command(bench.name)
    .description(bench.what)
    .option('--json', 'one event a line, the last with event "result"', false)
    .option('--out <directory>', 'where the results are kept', RESULTS)
    .option('--repeat <n>', 'repetitions of each figure', whole(1, 1000), bench.repeat ?? 3)
    .option('--keep', 'leave the test hosts running', false);
  bench.options?.(command);
  const examples = bench.examples.map((line) => `  ./ums bench ${line}`).join('\n');
  return command
    .addHelpText(
      'after',
      `\nExamples:\n${examples}\n\nExit status: 0 when every figure is within its limit, 1 when not.\n`,
    )
    .action(async (flags: Record<string, unknown>) => {
      process.exitCode = await run(bench, flags);
    });
}

const program = new Command('ums bench')
  .description('Measure ums beside what there is without it, in the same run on the same machine')
  .enablePositionalOptions()
  .argument('[name]', 'the bench to run; without it, they are explained')
  .option('--json', 'one event a line, the last with event "result"', false)
  .action((name: string | undefined, flags: { json: boolean }) => {
    const report = new Reporter(flags.json);
    if (name === undefined) process.exitCode = list(report);
    else {
      const message = `There is no bench "${name}".`;
      const mend = `There are: ${BENCHES.map((each) => each.name).join(', ')}.`;
      process.exitCode = report.failure(new UmsError('UMS_E_USAGE', { message, fault: 'user', mend }));
    }
  });
for (const bench of BENCHES) program.addCommand(commandOf(bench).exitOverride());
await enter(program);
