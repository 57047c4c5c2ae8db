import { existsSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { type Command, Option } from 'commander';
import { AGENT_NODE_FLAGS } from '#src/agent/node-flags.ts';
import { systemNameSchema } from '#src/coordination/schema.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { type Cli, type Runner, usage } from '../command.ts';
import { dockerSteps } from '../install/docker.ts';
import { installSteps, type Step, uninstallSteps } from '../install/steps.ts';
import { type AgentSettings, LAYOUT } from '../install/unit.ts';
import { CHECKOUT } from './misc.ts';
import { port } from './options.ts';

interface InstallFlags {
  name?: string;
  peerAddress?: string;
  peerPort: number;
  dryRun: boolean;
  uninstall: boolean;
  engine?: 'docker';
}

const HELP = `
Examples:
  sudo ./ums install --name alpha --peer-address 192.0.2.1
  sudo ./ums install --name alpha --peer-address 192.0.2.1 --dry-run
  sudo ums install --engine docker
  sudo ums install --uninstall

It writes /opt/ums, /usr/local/bin/ums, /etc/systemd/system/ums-agent.service and
/etc/ums/agent.env, and starts the agent. The journal and the keys in /var/lib/ums
are kept by --uninstall. Repeating it updates an installation; its settings stay
unless they are given again.

Docker starts a container out of a checkpoint only through a runtime that its own
settings name. --engine docker names it in /etc/docker/daemon.json and has dockerd
read that; containers that run go on. Only a destination needs it.
`;

export function addInstall(program: Command, runner: Runner): void {
  const install = program
    .command('install')
    .description('Install ums on this host, with the agent as a systemd service')
    .option('--name <name>', 'by which other systems know this one (default: the host name)')
    .option('--peer-address <address>', 'at which other systems reach this one')
    .option('--peer-port <port>', 'at which other systems reach this one', port, 7440)
    .option('--dry-run', 'print what would be done', false)
    .addOption(new Option('--engine <name>', 'only make this engine ready to receive services').choices(['docker']))
    .option('--uninstall', 'remove what was installed', false)
    .addHelpText('after', HELP);
  runner.action(install, async (cli, flags: InstallFlags) => {
    const systemd = existsSync('/run/systemd/system');
    if (flags.engine !== undefined) return await prepareEngine(cli, flags, systemd);
    const steps = flags.uninstall
      ? uninstallSteps(LAYOUT, systemd)
      : installSteps(CHECKOUT, LAYOUT, settingsOf(flags), systemd);
    if (flags.dryRun) return dryRun(cli, steps, systemd);
    requireRoot();
    await carryOut(cli, steps);
    cli.show(
      { done: flags.uninstall ? 'uninstalled' : 'installed', systemd, steps: steps.map((step) => step.what) },
      () =>
        flags.uninstall ? 'ums is removed. Its journal and keys are still in /var/lib/ums.' : installedText(systemd),
    );
    return 0;
  });
}

async function prepareEngine(cli: Cli, { uninstall, dryRun: dry }: InstallFlags, systemd: boolean): Promise<number> {
  const installed = join(LAYOUT.prefix, 'app');
  const steps = dockerSteps(existsSync(installed) ? installed : CHECKOUT, uninstall);
  if (dry) return dryRun(cli, steps, systemd);
  requireRoot();
  await carryOut(cli, steps);
  cli.show({ done: uninstall ? 'uninstalled' : 'installed', steps: steps.map((step) => step.what) }, () =>
    uninstall
      ? 'Docker does not know the runtime of ums any more. Containers that were made with it do not start again.'
      : 'Docker can receive services.',
  );
  return 0;
}

/** An address is asked for the first time only: without one the settings that are there stay as they are. */
function settingsOf(flags: InstallFlags): AgentSettings | undefined {
  if (flags.peerAddress === undefined) {
    if (existsSync(LAYOUT.environment) && flags.name === undefined) return undefined;
    throw usage('--peer-address is missing.', {
      mend: 'Give the address at which the other systems reach this host: ums install --peer-address 192.0.2.1',
    });
  }
  const name = flags.name ?? hostname().split('.')[0]?.toLowerCase() ?? '';
  if (!systemNameSchema.safeParse(name).success) {
    throw usage(`"${name}" cannot be the name of a system.`, {
      mend: 'Use --name with small letters, digits and hyphens.',
    });
  }
  if (!/^[0-9a-zA-Z.:-]{1,253}$/.test(flags.peerAddress)) {
    throw usage(`"${flags.peerAddress}" is not an address or a host name.`);
  }
  return { name, peerAddress: flags.peerAddress, peerPort: flags.peerPort };
}

async function carryOut(cli: Cli, steps: readonly Step[]): Promise<void> {
  for (const step of steps) {
    cli.remark(`  ${step.what}`);
    await step.act();
  }
}

function dryRun(cli: Cli, steps: readonly Step[], systemd: boolean): number {
  cli.show(
    {
      dry_run: true,
      systemd,
      steps: steps.map(({ what, text }) => ({ what, ...(text === undefined ? {} : { text }) })),
    },
    () => {
      const lines = steps.flatMap(({ what, text }) => [
        `  ${what}`,
        ...(text ?? '')
          .split('\n')
          .filter((line) => line !== '')
          .map((line) => `    │ ${line}`),
      ]);
      return `${lines.join('\n')}\n${systemd ? '' : `\n${withoutSystemd()}\n`}Dry run: nothing was done.\n`;
    },
  );
  return 0;
}

function installedText(systemd: boolean): string {
  const check = 'Look at it: ums systems; ums doctor. Then pair it with another: ums pair invite --help';
  return systemd
    ? `The agent runs (systemctl status ums-agent; journalctl -u ums-agent).\n${check}\n`
    : `${withoutSystemd()}\n${check}\n`;
}

function withoutSystemd(): string {
  return `This machine does not run systemd, so nothing keeps the agent running. Start it under your own supervisor, as root:
  . ${LAYOUT.environment}
  ${LAYOUT.prefix}/node/bin/node ${AGENT_NODE_FLAGS.join(' ')} ${LAYOUT.prefix}/app/src/agent/main.ts --name "$NAME" --peer-address "$PEER_ADDRESS" --peer-port "$PEER_PORT"`;
}

function requireRoot(): void {
  if (process.getuid?.() === 0) return;
  throw new UmsError('UMS_E_USAGE', {
    message: 'Installing writes to /opt, /usr/local and /etc, which only root may.',
    fault: 'user',
    state: 'Nothing was changed.',
    mend: 'Run it with sudo, or see what it would do with --dry-run.',
  });
}
