import { toUmsError } from '#src/telemetry/errors.ts';
import { startHere } from './start-task.ts';

/** `node start-task-command.ts REQUEST`: starts one task and ends (start-task.ts). */
try {
  await startHere(process.argv[2] ?? '');
} catch (error) {
  process.stderr.write(`Error: ${toUmsError(error).message}\n`);
  process.exitCode = 1;
}
