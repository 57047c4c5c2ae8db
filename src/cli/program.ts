import { Command, CommanderError } from 'commander';
import { toUmsError, type UmsError } from '#src/telemetry/errors.ts';
import { type Action, Cli, type GlobalOptions, type Runner, usage } from './command.ts';
import { addFrontman } from './commands/frontman.ts';
import { addCapsule } from './commands/capsule.ts';
import { addDoctor } from './commands/doctor.ts';
import { addImage } from './commands/image.ts';
import { addInstall } from './commands/install.ts';
import { addCheck, addMigrate } from './commands/migrate.ts';
import { addMigrations } from './commands/migrations.ts';
import { addAgent, addCheckoutCommands, addMisc } from './commands/misc.ts';
import { addServices } from './commands/services.ts';
import { addPair, addSystems } from './commands/systems.ts';
import { EXIT_STATUSES, exitStatusHelp } from './exit-statuses.ts';
import { errorEvent, renderError } from './render-error.ts';
import type { Io } from './terminal.ts';

interface Outcome {
  status: number;
  /** What commander wrote to standard error, help for an incomplete command among it. */
  complaint: string;
}

/** Runs one command line and returns its exit status; whatever is thrown is shown. */
export async function run(argv: readonly string[], io: Io): Promise<number> {
  const outcome: Outcome = { status: 0, complaint: '' };
  const program = buildProgram(io, outcome);
  // What follows these belongs to the program that is to be run, also what looks like an option of every command.
  if (argv[0] === 'capsule' && (argv[1] === 'run' || argv[1] === 'exec')) program.enablePositionalOptions();
  try {
    if (argv.length === 0) program.outputHelp();
    else await program.parseAsync(customary(argv), { from: 'user' });
    return outcome.status;
  } catch (thrown) {
    if (thrown instanceof CommanderError && thrown.exitCode === 0) return 0;
    // A group of commands without a choice among them: its help says what there is.
    if (thrown instanceof CommanderError && thrown.code === 'commander.help') {
      io.err(outcome.complaint);
      return usage('').exitStatus;
    }
    return report(
      thrown instanceof CommanderError ? malformed(thrown, program, argv) : toUmsError(thrown),
      program,
      io,
      argv,
    );
  }
}

/** The spellings that people try first. */
function customary(argv: readonly string[]): string[] {
  const [first, ...rest] = argv;
  if (first === '--version' || first === '-V') return ['version', ...rest];
  if (first === 'help') return [...rest, '--help'];
  return [...argv];
}

function report(error: UmsError, program: Command, io: Io, argv: readonly string[]): number {
  // A malformed command line may have been given up before --json was reached.
  const cli = new Cli(io, { ...program.opts<GlobalOptions>(), ...(argv.includes('--json') ? { json: true } : {}) });
  if (cli.json) cli.emit(errorEvent(error));
  else io.err(renderError(error, cli.style, io.columns()));
  return error.exitStatus;
}

function malformed(thrown: CommanderError, program: Command, argv: readonly string[]): UmsError {
  const path: string[] = [];
  let command: Command | undefined = program;
  for (const word of argv.filter((each) => !each.startsWith('-'))) {
    command = command.commands.find((each) => each.name() === word);
    if (command === undefined) break;
    path.push(word);
  }
  return usage(thrown.message.replace(/^error: /, '').replaceAll('\n', ' '), {
    mend: `See: ums ${[...path, '--help'].join(' ')}`,
    cause: thrown,
  });
}

const EXAMPLES = `
Examples:
  ums demo                            see it work on this machine
  ums ls                              what runs here
  ums check redis --to beta           could it move?
  ums migrate redis --to beta         move it
  ums doctor                          what this machine has and lacks

`;

/** The whole command tree. `outcome` receives the exit status of the command that ran. */
export function buildProgram(io: Io, outcome: Outcome): Command {
  const program = new Command('ums');
  program
    .description('Moves running containers between hosts, with their memory, while their clients wait a moment')
    .option('--context <name>', 'talk to this agent instead of the local one (or UMS_CONTEXT; see: ums contexts)')
    .option('--json', 'JSON on standard output, errors as {"event":"error",…}')
    .option('--no-color', 'no colours (or NO_COLOR)')
    .option('--quiet', 'only what was asked for')
    .helpCommand(false)
    .showSuggestionAfterError(true)
    .exitOverride()
    .configureOutput({
      writeOut: (text) => io.out(text),
      // What commander has to say about a malformed command is shown by `run` in the form of every other error.
      writeErr: (text) => {
        outcome.complaint += text;
      },
    })
    .addHelpText('after', `${EXAMPLES}${exitStatusHelp()}`);
  const runner: Runner = {
    action<Args extends unknown[]>(command: Command, act: Action<Args>) {
      const handler = async (...args: Args) => {
        outcome.status = await act(new Cli(io, program.opts<GlobalOptions>()), ...args);
      };
      command.action(handler);
      return handler;
    },
  };
  addSystems(program, runner);
  addPair(program, runner);
  addServices(program, runner);
  addCheck(program, runner);
  addMigrate(program, runner);
  addMigrations(program, runner);
  addFrontman(program, runner);
  addAgent(program, runner);
  addCapsule(program, runner);
  addInstall(program, runner);
  addImage(program, runner);
  addDoctor(program, runner);
  addMisc(program, runner);
  addCheckoutCommands(program, runner);
  for (const command of program.commands) describeExit(command);
  return program;
}

/** Every command says what its exit statuses can be. */
function describeExit(command: Command): void {
  const common = [0, 2, 8].map((status) => `  ${status}  ${EXIT_STATUSES[status] ?? ''}\n`).join('');
  if (command.commands.length === 0)
    command.addHelpText('after', `\nExit status (all of them: ums --help):\n${common}`);
  else command.helpCommand(false);
  for (const child of command.commands) describeExit(child);
}
