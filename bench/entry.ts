import { type Command, CommanderError } from 'commander';

const EXIT_USAGE = 2;

/** Runs a program's command line; a malformed one ends with the same status as everywhere in ums. */
export async function enter(program: Command): Promise<void> {
  try {
    await program.exitOverride().parseAsync();
  } catch (thrown) {
    if (!(thrown instanceof CommanderError)) throw thrown;
    process.exitCode = thrown.exitCode === 0 ? 0 : EXIT_USAGE;
  }
}
