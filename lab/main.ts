import { CommanderError } from 'commander';
import { renderError } from '#src/cli/render-error.ts';
import { makeStyle, processIo, wantsColor } from '#src/cli/terminal.ts';
import { ERROR_CODES } from '#src/telemetry/error-codes.ts';
import { toUmsError } from '#src/telemetry/errors.ts';
import { labProgram } from './program.ts';

const io = processIo();
const program = labProgram();
try {
  await program.parseAsync();
} catch (thrown) {
  // The parser has spoken already: help ends well, anything else is a mistake in the command.
  if (thrown instanceof CommanderError) process.exit(thrown.exitCode === 0 ? 0 : ERROR_CODES.UMS_E_USAGE.exit);
  const error = toUmsError(thrown);
  if (program.opts()['json'] === true || process.argv.includes('--json')) {
    io.out(`${JSON.stringify({ event: 'error', ...error.toReport(), exit_status: error.exitStatus })}\n`);
  }
  io.err(renderError(error, makeStyle(wantsColor(io, true)), io.columns()));
  process.exitCode = error.exitStatus;
}
