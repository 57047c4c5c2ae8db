import { Command } from 'commander';
import { ERROR_CODES } from '#src/telemetry/error-codes.ts';
import { toUmsError } from '#src/telemetry/errors.ts';
import { Lab } from './lab.ts';
import { sayToPerson } from './say.ts';

export function labProgram(): Command {
  const program = new Command('ums lab');
  program.description(
    'Test hosts on this machine: each with its own root, network, processes, agent, runc, Podman and CRIU 4.',
  );
  program.enablePositionalOptions();
  const lab = (): Lab => Lab.open(undefined, sayToPerson);

  program
    .command('up')
    .argument('[HOST...]', 'names of hosts; alpha and beta if there are none yet')
    .option('--no-agents', 'start no agents')
    .option('--fault-injection', 'let tests set breakpoints in the agents')
    .option('--json', 'print the status as JSON')
    .action(async (hosts: string[], options: { agents: boolean; faultInjection?: boolean; json?: boolean }) => {
      const opened = lab();
      await opened.up({
        agents: options.agents,
        faultInjection: options.faultInjection === true,
        ...(hosts.length === 0 ? {} : { hosts }),
      });
      printStatus(opened, options.json === true);
    });
  program
    .command('down')
    .option('--json', 'print the status as JSON')
    .action(async (options: { json?: boolean }) => {
      const opened = lab();
      await opened.down();
      printStatus(opened, options.json === true);
    });
  program
    .command('status')
    .option('--json', 'print JSON')
    .action((options: { json?: boolean }) => {
      printStatus(lab(), options.json === true);
    });
  program
    .command('exec')
    .argument('HOST')
    .argument('COMMAND...')
    .passThroughOptions()
    .action((host: string, command: string[]) => {
      const [name, ...rest] = command[0] === '--' ? command.slice(1) : command;
      const [enter, args] = lab()
        .host(host)
        .command(name ?? 'true', rest);
      become(enter, args);
    });
  return program;
}

function printStatus(lab: Lab, json: boolean): void {
  const status = lab.status();
  if (json) {
    process.stdout.write(`${JSON.stringify(status)}\n`);
    return;
  }
  process.stdout.write(`Lab ${status.name} is ${status.up ? 'up' : 'down'}\n`);
  for (const host of status.hosts) {
    const agent = host.agent_pid === null ? 'no agent' : `agent ${host.agent_pid}`;
    process.stdout.write(
      `  ${host.name.padEnd(13)} ${host.address.padEnd(12)} ${host.running ? 'running' : 'down'}, ${agent}\n`,
    );
  }
}

/** This process becomes the program: nothing is left in between that could swallow a signal, a byte or an exit code. */
function become(program: string, args: readonly string[]): never {
  process.execve?.(program, [program, ...args], { ...process.env });
  throw new Error('this Node cannot replace itself');
}

try {
  await labProgram().parseAsync();
} catch (thrown) {
  const error = toUmsError(thrown);
  process.stderr.write(`${error.code}: ${error.message}\n${error.mend === '' ? '' : `${error.mend}\n`}`);
  if (error.detail !== undefined) process.stderr.write(`${error.detail}\n`);
  process.exitCode = ERROR_CODES[error.code].exit;
}
