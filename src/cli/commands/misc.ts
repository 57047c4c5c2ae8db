import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { constants } from 'node:os';
import { join } from 'node:path';
import { type Command, Option } from 'commander';
import { z } from 'zod';
import { UmsError } from '#src/telemetry/errors.ts';
import { type Cli, type Runner, usage } from '../command.ts';
import { completionScript } from '../completion.ts';
import { listContexts, localSocket } from '../contexts.ts';
import { formatTable } from '../format.ts';

export const CHECKOUT = join(import.meta.dirname, '..', '..', '..');

export async function ownVersion(): Promise<string> {
  const text = await readFile(join(CHECKOUT, 'package.json'), 'utf8');
  return z.object({ version: z.string() }).parse(JSON.parse(text)).version;
}

export function addMisc(program: Command, runner: Runner): void {
  const version = program
    .command('version')
    .description('Show the version of this command line and of the agent')
    .addHelpText('after', '\nExample:\n  ums version\n');
  runner.action(version, async (cli) => {
    const own = await ownVersion();
    const agent = await agentVersion(cli);
    cli.show(
      { version: own, node: process.version, agent },
      () => `ums ${own} (node ${process.version}); agent: ${agent ?? 'none answers'}`,
    );
    return 0;
  });
  const contexts = program
    .command('contexts')
    .description('List the agents that --context can name')
    .addHelpText('after', '\nExample:\n  ums contexts\n  ums --context alpha ls\n');
  runner.action(contexts, async (cli) => {
    const all = [{ name: 'local', socket: localSocket(cli.io.env) }, ...(await listContexts(cli.io.env))];
    const rows = all.map((each) => ({ ...each, there: existsSync(each.socket) }));
    cli.show(rows, () =>
      cli.quiet
        ? rows.map((row) => `${row.name}\n`).join('')
        : formatTable(
            [
              { title: 'name', value: (row) => row.name },
              { title: 'agent', value: (row) => (row.there ? 'socket there' : 'no socket') },
              { title: 'socket', value: (row) => row.socket, least: 40 },
            ],
            rows,
            cli.io.columns(),
          ),
    );
    return 0;
  });
  const completion = program
    .command('completion')
    .description('Print a completion script for a shell')
    .argument('<shell>', 'bash, zsh or fish')
    .addHelpText('after', COMPLETION_HELP);
  runner.action(completion, async (cli, shell: string) => {
    const script = completionScript(shell, program);
    if (script === undefined)
      throw usage(`There is no completion for "${shell}".`, { mend: 'Choose bash, zsh or fish.' });
    cli.show({ shell, script }, () => script);
    return Promise.resolve(0);
  });
}

const COMPLETION_HELP = `
Examples:
  ums completion bash > /etc/bash_completion.d/ums
  ums completion zsh > /usr/local/share/zsh/site-functions/_ums
  ums completion fish > ~/.config/fish/completions/ums.fish
`;

async function agentVersion(cli: Cli): Promise<string | null> {
  try {
    return await cli.withAgent(async (client) => (await client.system()).version);
  } catch (thrown) {
    if (thrown instanceof UmsError && thrown.code === 'UMS_E_AGENT_UNREACHABLE') return null;
    throw thrown;
  }
}

export function addAgent(program: Command, runner: Runner): void {
  const agent = program.command('agent').description('The daemon of a system');
  const start = agent
    .command('run')
    .description('Run the agent in the foreground (its options are passed on)')
    .allowUnknownOption()
    .allowExcessArguments()
    .argument('[options...]', 'options of the agent')
    .addHelpText('after', AGENT_HELP);
  runner.action(start, (_cli, options: string[]) => passOn('src/agent/main.ts', options));
}

const AGENT_HELP = `
Example:
  ums agent run --name alpha --peer-address 192.0.2.1 [--peer-port 7440]

Environment: UMS_STATE_DIR (default /var/lib/ums), UMS_RUN_DIR (default /run/ums).
On a host of your own, \`ums install\` makes a service of it.
`;

/** Commands that are there only in a checkout, each a program of its own. */
const CHECKOUT_COMMANDS = [
  ['demo', 'bench/demo.ts', 'Show a Redis under load moving between two test hosts on this machine, and back'],
  ['bench', 'bench/main.ts', 'Measure: ums bench NAME [--json]; without a name, list the benches'],
  [
    'lab',
    'lab/main.ts',
    'Test hosts on this machine: up, status, exec, shell, link, partition, kill, restart, logs, down',
  ],
  ['test', 'lab/test.ts', 'Run the tests of the project: ums test [unit]'],
] as const;

export function addCheckoutCommands(program: Command, runner: Runner): void {
  for (const [name, file, description] of CHECKOUT_COMMANDS) {
    const command = program
      .command(name)
      .description(description)
      .helpOption(false)
      .allowUnknownOption()
      .allowExcessArguments()
      .addOption(new Option('--help', 'its own help').hideHelp())
      .argument('[arguments...]', 'passed on');
    runner.action(command, (cli, rest: string[]) => {
      if (!existsSync(join(CHECKOUT, file))) throw usage(`"ums ${name}" is there only in a checkout of the project.`);
      const globals = [...(cli.json ? ['--json'] : []), ...(command.opts()['help'] === true ? ['--help'] : [])];
      return passOn(file, [...rest, ...globals]);
    });
  }
}

/** Runs another program of the checkout in this one's place: its output, signals and exit status are passed through. */
function passOn(file: string, args: readonly string[]): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  const child = spawn(process.execPath, [join(CHECKOUT, file), ...args], { stdio: 'inherit' });
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  // A terminal sends Ctrl-C to the whole group; only signals sent to this process alone must be handed on.
  const handlers = signals.map((signal) => ({ signal, handler: () => signal === 'SIGINT' || child.kill(signal) }));
  for (const { signal, handler } of handlers) process.on(signal, handler);
  child.on('error', reject);
  child.on('exit', (code, signal) => {
    for (const each of handlers) process.off(each.signal, each.handler);
    resolve(code ?? 128 + (signal === null ? 0 : constants.signals[signal]));
  });
  return promise;
}
