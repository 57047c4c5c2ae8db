import { run } from './program.ts';
import { processIo } from './terminal.ts';

// A reader that goes away (`ums ls | head -1`) is not an error of ours.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0);
  throw error;
});

process.exitCode = await run(process.argv.slice(2), processIo());
