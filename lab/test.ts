import { Command } from 'commander';
import { renderError } from '#src/cli/render-error.ts';
import { makeStyle, processIo } from '#src/cli/terminal.ts';
import { toUmsError, UmsError } from '#src/telemetry/errors.ts';
import { type Outcome, runEndToEnd, runStaticChecks, runUnitTests, summaryLines } from './testing.ts';

/** `ums test`: static checks, unit tests, then the privileged tests in labs of their own. */
const program = new Command('ums test')
  .description('Run the checks and tests of the project. End-to-end tests use labs of their own, test-1 and test-2.')
  .argument('[PART]', 'checks, unit or e2e; without it, all three')
  .argument('[PATTERN]', 'with unit or e2e: only files whose name contains this')
  .option('--json', 'print the outcome as one JSON object on standard output')
  .addHelpText('after', '\nExamples:\n  $ ums test\n  $ ums test unit\n  $ ums test e2e kill\n')
  .parse();

const [part = 'all', pattern = ''] = program.args;
const json = program.opts()['json'] === true;
const io = processIo();
const stop = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => stop.abort());

try {
  const outcomes: Outcome[] = [];
  for (const run of chosen()) outcomes.push(...(await run()));
  report(outcomes);
} catch (thrown) {
  const error = toUmsError(thrown);
  io.err(renderError(error, makeStyle(false), io.columns()));
  process.exitCode = error.exitStatus;
}

function chosen(): (() => Promise<Outcome[]>)[] {
  const parts = {
    checks: () => runStaticChecks(stop.signal),
    unit: () => runUnitTests(pattern, stop.signal),
    e2e: () => runEndToEnd(pattern, stop.signal),
  };
  if (part === 'all') return [parts.checks, parts.unit, parts.e2e];
  if (part === 'checks' || part === 'unit' || part === 'e2e') return [parts[part]];
  throw new UmsError('UMS_E_USAGE', {
    message: `There is no part "${part}" of the tests`,
    fault: 'user',
    mend: 'Parts are checks, unit and e2e.',
  });
}

function report(outcomes: readonly Outcome[]): void {
  const passed = outcomes.reduce((sum, outcome) => sum + outcome.passed, 0);
  const failed = outcomes.reduce((sum, outcome) => sum + outcome.failed, 0);
  const lines = [...summaryLines(outcomes), `${passed} passed, ${failed} failed`];
  if (json) io.out(`${JSON.stringify({ event: 'result', passed, failed, outcomes })}\n`);
  else io.out(`${lines.join('\n')}\n`);
  process.exitCode = failed === 0 && passed > 0 ? 0 : 1;
}
