import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Command, Option } from 'commander';
import { BUNDLE } from '#src/approaches/container-level/layout.ts';
import { execCommand, nestedHealth } from '#src/approaches/container-level/nested.ts';
import { accountOf } from '#src/approaches/container-level/users.ts';
import { requireProgram } from '#src/drivers/oci/runtime.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { type Cli, type Runner, usage } from '../command.ts';
import { type RunFlags, runCapsule } from '../capsule/run.ts';
import { addCapsuleDoctor } from './capsule-doctor.ts';
import { addWrap } from './capsule-wrap.ts';
import { port } from './options.ts';

const RUN_HELP = `
It is what the image's first process starts, so its options are the container's arguments:

Examples:
  podman run -d --name cache ... ums-capsule --image /srv/redis.tar
  podman run -d --name cache ... ums-capsule --image /srv/redis.tar redis-server --save ''
  podman run -d --name inbox ... ums-capsule

Without an image or a root file system the capsule is empty and waits to receive a service.
The options that its engine needs ("...") are in docs/container-level.md; environment that
the engine gives to the capsule is the service's.
`;

export function addCapsule(program: Command, runner: Runner): void {
  const capsule = program
    .command('capsule')
    .description('A container that carries ums and runs a service within')
    .enablePositionalOptions();
  addRun(capsule, runner);
  addExec(capsule, runner);
  addWrap(capsule, runner);
  addCapsuleDoctor(capsule, runner);
  const health = capsule
    .command('health')
    .description('Run the health check of the service in this capsule')
    .option('--empty-is-healthy', 'also without a service', false)
    .addHelpText('after', '\nExample:\n  podman exec cache ums capsule health\n');
  runner.action(health, async (cli, options: { emptyIsHealthy: boolean }) => {
    const found = await nestedHealth();
    const { output, state } = found;
    const healthy = found.healthy || (state === 'absent' && options.emptyIsHealthy);
    cli.show({ healthy, state, output }, () => output);
    if (healthy) return 0;
    throw new UmsError('UMS_E_UNHEALTHY', {
      message: 'The capsule’s service is not healthy',
      fault: 'service',
      detail: output,
    });
  });
}

const collect = (value: string, before: string[]): string[] => [...before, value];

const several = (flags: string, description: string): Option =>
  new Option(flags, description).argParser(collect).default([], '');

function addRun(capsule: Command, runner: Runner): void {
  const run = capsule
    .command('run')
    .description('Run a service as a nested container: the entry point of a capsule')
    .argument('[command...]', 'program and arguments, instead of the image’s')
    .passThroughOptions()
    .addOption(new Option('--image <image>', 'archive, OCI layout or name in a registry').env('UMS_CAPSULE_IMAGE'))
    .option('--rootfs <path>', 'a directory or a tar of one, instead of an image')
    .addOption(new Option('--config <file>', 'JSON with fields of a Specification').env('UMS_CAPSULE_CONFIG'))
    .option('--insecure-registry', 'the registry has no TLS', false)
    .option('--entrypoint <program>', 'instead of the image’s; its command is then void')
    .addOption(several('--env <name=value>', 'a variable of the service; may be repeated'))
    .option('--user <user[:group]>', 'names of the image, or numbers')
    .option('--workdir <path>', 'working directory')
    .option('--hostname <name>', 'host name of the service (default: the capsule’s)')
    .option('--stop-signal <signal>', 'what it gets when the capsule gets SIGTERM')
    .addOption(several('--volume <path:path[:ro]>', 'a path of the capsule for the service; may be repeated'))
    .addOption(several('--cap-add <name>', 'a capability more; may be repeated'))
    .addOption(several('--cap-drop <name>', 'a capability less; may be repeated'))
    .option('--read-only', 'its root file system cannot be written to', false)
    .option('--no-agent', 'no agent: nothing moves in or out')
    .addOption(new Option('--name <name>', 'of the capsule as a system').env('UMS_CAPSULE_NAME'))
    .addOption(new Option('--peer-address <address>', 'at which others reach it').env('UMS_CAPSULE_PEER_ADDRESS'))
    .addOption(
      new Option('--peer-port <port>', 'of the agent; published under the same number')
        .argParser(port)
        .default(7440)
        .env('UMS_CAPSULE_PEER_PORT'),
    )
    .addOption(
      new Option('--pairing-port <port>', 'of the agent while it pairs; likewise')
        .argParser(port)
        .default(7441)
        .env('UMS_CAPSULE_PAIRING_PORT'),
    )
    .addHelpText('after', RUN_HELP);
  runner.action(run, (cli, command: string[], flags: RunFlags) => runCapsule(cli, command, flags));
}

interface ExecFlags {
  tty: boolean;
  interactive: boolean;
  user?: string;
  env: string[];
  workdir?: string;
}

function addExec(capsule: Command, runner: Runner): void {
  const exec = capsule
    .command('exec')
    .description('Run a program inside the service of this capsule')
    .argument('<command...>', 'program and arguments')
    .passThroughOptions()
    .option('-t, --tty', 'with a terminal', false)
    .option('-i, --interactive', 'accepted and without effect: input is always passed on', false)
    .option('-u, --user <user[:group]>', 'names of its image, or numbers')
    .addOption(new Option('-e, --env <name=value>', 'a variable; may be repeated').argParser(collect).default([], ''))
    .option('-w, --workdir <path>', 'working directory')
    .addHelpText(
      'after',
      '\nExamples:\n  podman exec cache ums capsule exec redis-cli ping\n  podman exec -it cache ums capsule exec -t sh\n',
    );
  runner.action(exec, async (_cli: Cli, command: string[], flags: ExecFlags) => {
    const words = await execCommand(command, {
      tty: flags.tty,
      env: flags.env,
      ...(flags.user === undefined ? {} : { user: numeric(flags.user) }),
      ...(flags.workdir === undefined ? {} : { workingDir: flags.workdir }),
    });
    // This process becomes the program's parent's last link: signals, input and exit status need nobody in between.
    process.execve?.(await requireProgram('runc'), words, { ...process.env });
    throw usage('This Node cannot replace itself by another program.');
  });
}

const inService = (path: string): string => readFileSync(join(BUNDLE, 'rootfs', path), 'utf8');

function numeric(user: string): string {
  if (/^\d+(?::\d+)?$/.test(user)) return user;
  const { uid, gid } = accountOf(user, [], inService('etc/passwd'), inService('etc/group'));
  return `${uid}:${gid}`;
}
