import { renderError } from '#src/cli/render-error.ts';
import { makeStyle, processIo, wantsColor } from '#src/cli/terminal.ts';
import { toUmsError } from '#src/telemetry/errors.ts';
import { labProgram } from './program.ts';

const io = processIo();
const program = labProgram();
try {
  await program.parseAsync();
} catch (thrown) {
  const error = toUmsError(thrown);
  if (program.opts()['json'] === true || process.argv.includes('--json')) {
    io.out(`${JSON.stringify({ event: 'error', ...error.toReport(), exit_status: error.exitStatus })}\n`);
  }
  io.err(renderError(error, makeStyle(wantsColor(io, true)), io.columns()));
  process.exitCode = error.exitStatus;
}
