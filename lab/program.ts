import { Command, Option } from 'commander';
import { UmsError } from '#src/telemetry/errors.ts';
import { DAEMON_ENGINES, type DaemonEngine, Lab } from './lab.ts';
import { parseDelay, parseLoss } from './links.ts';
import { followLog } from './logs.ts';
import { sayToPerson } from './say.ts';
import { renderMeasurement, renderStatus } from './status.ts';

interface Json {
  json?: boolean;
}

interface UpFlags {
  agents: boolean;
  faultInjection?: boolean;
  with: DaemonEngine[];
}

/** `ums lab …`. The lab it speaks of is the one that UMS_LAB names, "ums" by default. */
export function labProgram(): Command {
  const program = new Command('ums lab')
    .description(
      'Test hosts on this machine, each with its own root, network, processes, agent, runc, Podman, Docker, containerd and CRIU 4.',
    )
    .enablePositionalOptions()
    .exitOverride()
    .addHelpText(
      'after',
      examples('ums lab up', 'ums lab exec alpha -- podman ps', 'ums --context alpha ls', 'ums lab down'),
    );
  addUpAndDown(program);
  addExec(program);
  addNetwork(program);
  addFailures(program);
  addMaterial(program);
  return program;
}

function examples(...lines: string[]): string {
  return `\nExample${lines.length > 1 ? 's' : ''}:\n${lines.map((line) => `  $ ${line}`).join('\n')}\n`;
}

const openLab = (): Lab => Lab.open(undefined, sayToPerson);

function print(lab: Lab, options: Json): void {
  const status = lab.status();
  process.stdout.write(options.json === true ? `${JSON.stringify(status)}\n` : renderStatus(status));
}

const JSON_OPTION = ['--json', 'print JSON instead of text'] as const;

function addUpAndDown(program: Command): void {
  program
    .command('up')
    .description('Make what is missing: root file system, hosts, network, agents. Harmless when all is there.')
    .argument('[HOST...]', 'hosts that there shall be; alpha and beta if there are none yet')
    .addOption(
      new Option('--with <engines>', `start these engines on every host, too: ${DAEMON_ENGINES.join(',')}`)
        .argParser(parseEngines)
        .default([], 'none'),
    )
    .option('--no-agents', 'start and pair no agents')
    .option('--fault-injection', 'let tests set breakpoints in the agents')
    .option(...JSON_OPTION)
    .addHelpText('after', examples('ums lab up', 'ums lab up gamma', 'ums lab up --with docker,containerd'))
    .action(async (hosts: string[], options: Json & UpFlags) => {
      const lab = openLab();
      const { agents, faultInjection = false, with: engines } = options;
      await lab.up({ agents, faultInjection, engines, ...(hosts.length === 0 ? {} : { hosts }) });
      print(lab, options);
    });
  program
    .command('down')
    .description('Remove everything: processes, network, control groups, disks. Works after a crash, too.')
    .option(...JSON_OPTION)
    .addHelpText('after', examples('ums lab down'))
    .action(async (options: Json) => {
      const lab = openLab();
      await lab.down();
      print(lab, options);
    });
  program
    .command('status')
    .description('What is there.')
    .option(...JSON_OPTION)
    .addHelpText('after', examples('ums lab status --json'))
    .action((options: Json) => print(openLab(), options));
}

/** Names with commas between them; given twice, both count. */
function parseEngines(text: string, before: readonly DaemonEngine[]): DaemonEngine[] {
  const named = text.split(',').map((name) => {
    const engine = DAEMON_ENGINES.find((each) => each === name.trim());
    if (engine !== undefined) return engine;
    throw new UmsError('UMS_E_USAGE', {
      message: `"${name}" is no engine that the lab starts`,
      fault: 'user',
      mend: `It starts ${DAEMON_ENGINES.join(' and ')}; Podman and runc need no daemon and are always there.`,
    });
  });
  return [...new Set([...before, ...named])];
}

function addExec(program: Command): void {
  program
    .command('exec')
    .description('Run a command on a host. Standard input, output and error, signals and the exit code pass through.')
    .argument('HOST', 'a host, or "outside": on the lab\'s network, but on no host')
    .argument('COMMAND...')
    .option('--env <name=value...>', 'set variables for it')
    .passThroughOptions()
    .addHelpText('after', examples('ums lab exec alpha -- podman ps', 'tar -c . | ums lab exec beta -- tar -x -C /srv'))
    .action((host: string, command: string[], options: { env?: string[] }) => {
      const [program = 'true', ...args] = command[0] === '--' ? command.slice(1) : command;
      become(openLab().command(host, program, args, { env: parseEnv(options.env ?? []) }));
    });
  program
    .command('shell')
    .description('An interactive shell on a host.')
    .argument('HOST')
    .addHelpText('after', examples('ums lab shell alpha'))
    .action((host: string) => become(openLab().command(host, 'bash', ['-l'], { env: { PS1: `${host}:\\w# ` } })));
}

function parseEnv(pairs: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    pairs.map((pair): [string, string] => {
      const at = pair.indexOf('=');
      if (at > 0) return [pair.slice(0, at), pair.slice(at + 1)];
      throw new UmsError('UMS_E_USAGE', {
        message: `"${pair}" is not NAME=VALUE`,
        fault: 'user',
        mend: 'Write --env NAME=VALUE.',
      });
    }),
  );
}

/** This process becomes the program: nothing is left in between that could swallow a signal, a byte or an exit code. */
function become([program, args]: [string, string[]]): never {
  process.execve?.(program, [program, ...args], { ...process.env });
  throw new Error('this Node cannot replace itself by another program');
}

function addNetwork(program: Command): void {
  program
    .command('link')
    .description('Set and measure the link between the hosts. What is not given stays as it is; with nothing, measure.')
    .option('--rate <rate>', 'for each host, each way: 1gbit, 11.34mbit, 800kbit, or max')
    .option('--delay <ms>', 'one way between any two hosts', parseDelay)
    .option('--loss <percent>', 'of frames between any two hosts', parseLoss)
    .option('--no-measure', 'set it and do not measure')
    .option(...JSON_OPTION)
    .addHelpText(
      'after',
      examples('ums lab link --rate 1gbit --delay 10ms', 'ums lab link --rate max --delay 0 --loss 0'),
    )
    .action(async (options: Json & { rate?: string; delay?: number; loss?: number; measure: boolean }) => {
      const lab = openLab();
      const link = await lab.setLink({
        ...(options.rate === undefined ? {} : { rate: options.rate }),
        ...(options.delay === undefined ? {} : { delay_ms: options.delay }),
        ...(options.loss === undefined ? {} : { loss_percent: options.loss }),
      });
      if (!options.measure) return print(lab, options);
      const measured = await lab.link();
      const text =
        options.json === true ? `${JSON.stringify({ link, measured })}\n` : renderMeasurement(link, measured);
      process.stdout.write(text);
    });
  program
    .command('partition')
    .description('Let nothing pass between two hosts, or heal all partitions.')
    .argument('[FROM]')
    .argument('[TO]')
    .option('--one-way', 'cut only what goes from FROM to TO')
    .option('--heal', 'end all partitions')
    .option(...JSON_OPTION)
    .addHelpText(
      'after',
      examples('ums lab partition alpha beta', 'ums lab partition alpha beta --one-way', 'ums lab partition --heal'),
    )
    .action(
      async (
        from: string | undefined,
        to: string | undefined,
        options: Json & { oneWay?: boolean; heal?: boolean },
      ) => {
        const lab = openLab();
        if (options.heal === true) await lab.heal();
        else if (from === undefined || to === undefined) throw needsTwoHosts();
        else await lab.partition(from, to, { oneWay: options.oneWay === true });
        print(lab, options);
      },
    );
}

function needsTwoHosts(): UmsError {
  return new UmsError('UMS_E_USAGE', {
    message: 'A partition lies between two hosts',
    fault: 'user',
    state: 'Nothing was changed.',
    mend: 'Name both, as in: ./ums lab partition alpha beta. To end all partitions: ./ums lab partition --heal',
  });
}

function addFailures(program: Command): void {
  program
    .command('kill')
    .description('Cut the power of a host: its cable goes dead and every process ends at once. Its disk stays.')
    .argument('HOST')
    .option('--agent', 'kill -9 only its agent')
    .option(...JSON_OPTION)
    .addHelpText('after', examples('ums lab kill alpha', 'ums lab kill alpha --agent'))
    .action(async (host: string, options: Json & { agent?: boolean }) => {
      const lab = openLab();
      await (options.agent === true ? lab.killAgent(host) : lab.killHost(host));
      print(lab, options);
    });
  program
    .command('restart')
    .description('Boot a host again on its disk, as after a power cut, and start its agent.')
    .argument('HOST')
    .option('--agent', 'restart only its agent, in an orderly way')
    .option('--no-agents', 'boot the host and leave its agent off')
    .option('--fault-injection', 'let tests set breakpoints in the agent')
    .option(...JSON_OPTION)
    .addHelpText('after', examples('ums lab restart alpha', 'ums lab restart alpha --agent'))
    .action(async (host: string, options: Json & { agent?: boolean; agents: boolean; faultInjection?: boolean }) => {
      const lab = openLab();
      if (options.agent === true) await lab.stopAgent(host);
      else await lab.restartHost(host);
      if (options.agents) await lab.startAgent(host, { faultInjection: options.faultInjection === true });
      print(lab, options);
    });
}

function addMaterial(program: Command): void {
  program
    .command('logs')
    .description("A host's agent log, one JSON object a line.")
    .argument('HOST')
    .option('-f, --follow', 'go on as it grows, until interrupted')
    .option('-n, --lines <count>', 'only the last lines', (text) => Math.max(0, Math.trunc(Number(text) || 0)))
    .addHelpText('after', examples('ums lab logs alpha -f'))
    .action(async (host: string, options: { follow?: boolean; lines?: number }) => {
      await followLog(openLab().host(host).logPath, options);
    });
  program
    .command('image')
    .description('Import a prepared image into an engine of a host, as localhost/NAME (in Docker as NAME).')
    .argument('HOST')
    .argument('[NAME]', 'without it, list the images that are prepared')
    .addOption(
      new Option('--engine <engine>', 'which one').choices(['podman', ...DAEMON_ENGINES]).default('podman' as const),
    )
    .option(...JSON_OPTION)
    .addHelpText('after', examples('ums lab image alpha', 'ums lab image alpha redis'))
    .action(async (host: string, name: string | undefined, options: Json & { engine: 'podman' | DaemonEngine }) => {
      const chosen = openLab().host(host);
      const images =
        name === undefined ? await chosen.preparedImages() : [await chosen.importImage(name, options.engine)];
      process.stdout.write(options.json === true ? `${JSON.stringify({ host, images })}\n` : `${images.join('\n')}\n`);
    });
}
