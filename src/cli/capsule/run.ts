import { existsSync, mkdirSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { hostname, networkInterfaces } from 'node:os';
import { AgentProcess } from '#src/approaches/container-level/agent-process.ts';
import { lastWord, listenToInit } from '#src/approaches/container-level/init-channel.ts';
import { APP, BUNDLE, NODE, OUTPUT } from '#src/approaches/container-level/layout.ts';
import { makeBundle } from '#src/approaches/container-level/prepare.ts';
import {
  mergeSettings,
  parseSettings,
  type Settings,
  settingsSchema,
} from '#src/approaches/container-level/settings.ts';
import { Supervisor } from '#src/approaches/container-level/supervisor.ts';
import { prepareSurroundings } from '#src/approaches/container-level/surroundings.ts';
import { AGENT_NODE_FLAGS } from '#src/agent/node-flags.ts';
import { systemNameSchema } from '#src/coordination/schema.ts';
import { toUmsError } from '#src/telemetry/errors.ts';
import { AgentClient } from '../client.ts';
import { type Cli, usage } from '../command.ts';
import { renderError } from '../render-error.ts';

export interface RunFlags {
  image?: string;
  rootfs?: string;
  config?: string;
  insecureRegistry: boolean;
  entrypoint?: string;
  env: string[];
  user?: string;
  workdir?: string;
  hostname?: string;
  stopSignal?: string;
  volume: string[];
  capAdd: string[];
  capDrop: string[];
  readOnly: boolean;
  agent: boolean;
  name?: string;
  peerAddress?: string;
  peerPort: number;
  pairingPort: number;
}

const STATE_DIR = '/var/lib/ums';
const RUN_DIR = '/run/ums';

/** `ums capsule run`: returns when the capsule ends, with the status that it ends with. */
export async function runCapsule(cli: Cli, command: readonly string[], flags: RunFlags): Promise<number> {
  if (cli.io.env['UMS_CAPSULE_INIT'] === undefined) {
    throw usage('This is what the first process of a capsule starts.', {
      mend: 'Build the image with `ums image build capsule` and run it: docs/container-level.md says how.',
    });
  }
  try {
    const status = await supervise(cli, command, flags);
    lastWord(status);
    return status;
  } catch (thrown) {
    // A first start that fails fails again: the capsule ends, and its engine shows why.
    const error = toUmsError(thrown);
    cli.io.err(renderError(error, cli.style, cli.io.columns()));
    lastWord(error.exitStatus);
    return error.exitStatus;
  }
}

async function supervise(cli: Cli, command: readonly string[], flags: RunFlags): Promise<number> {
  const asked = await settingsOf(command, flags);
  await prepareSurroundings();
  for (const directory of [STATE_DIR, RUN_DIR, `${RUN_DIR}/api`]) {
    mkdirSync(directory, { recursive: true, mode: 0o700 });
  }
  const agent = flags.agent ? new AgentProcess(agentCommand(flags)) : undefined;
  const supervisor = new Supervisor({
    agent,
    stateDir: STATE_DIR,
    runDir: RUN_DIR,
    migrating: flags.agent ? migrating : () => Promise.resolve(false),
    say: (text) => cli.io.err(`capsule: ${text}\n`),
  });
  const deafen = listenToInit((event) => supervisor.handle(event));
  agent?.start();
  try {
    return await untilEnded(supervisor, asked, flags);
  } finally {
    await supervisor.stop();
    deafen();
  }
}

async function untilEnded(supervisor: Supervisor, asked: Settings, flags: RunFlags): Promise<number> {
  if (flags.image !== undefined || flags.rootfs !== undefined) {
    await makeBundle({ image: flags.image, rootfs: flags.rootfs, insecure: flags.insecureRegistry }, asked, hostname());
  }
  if (existsSync(BUNDLE)) await supervisor.startService();
  return await supervisor.ended;
}

async function settingsOf(command: readonly string[], flags: RunFlags): Promise<Settings> {
  const file = flags.config === undefined ? {} : parseSettings(await readFile(flags.config, 'utf8'), flags.config);
  const given = settingsSchema.safeParse({
    ...(flags.entrypoint === undefined ? {} : { entrypoint: [flags.entrypoint] }),
    ...(command.length === 0 ? {} : { command }),
    ...(flags.env.length === 0 ? {} : { env: flags.env }),
    ...(flags.user === undefined ? {} : { user: flags.user }),
    ...(flags.workdir === undefined ? {} : { workingDir: flags.workdir }),
    ...(flags.hostname === undefined ? {} : { hostname: flags.hostname }),
    ...(flags.stopSignal === undefined ? {} : { stopSignal: flags.stopSignal }),
    ...(flags.readOnly ? { readOnlyRootfs: true } : {}),
    ...(flags.volume.length === 0 ? {} : { mounts: flags.volume.map(volume) }),
    ...(flags.capAdd.length + flags.capDrop.length === 0
      ? {}
      : { capabilities: { add: flags.capAdd, drop: flags.capDrop } }),
  });
  if (!given.success) throw usage(`The options do not fit: ${given.error.issues[0]?.message ?? ''}`);
  return mergeSettings(file, given.data);
}

function volume(text: string): unknown {
  const [source = '', destination = '', mode = 'rw', ...rest] = text.split(':');
  if (source.startsWith('/') && destination.startsWith('/') && rest.length === 0 && /^r[ow]$/.test(mode)) {
    return { kind: 'bind', source, destination, readOnly: mode === 'ro' };
  }
  throw usage(`"${text}" is no volume.`, { mend: 'Write --volume /path/in/the/capsule:/path/in/the/service[:ro].' });
}

function agentCommand(flags: RunFlags): string[] {
  const name = flags.name ?? hostname().split('.')[0]?.toLowerCase() ?? '';
  if (!systemNameSchema.safeParse(name).success) {
    throw usage(`"${name}" cannot be the name of a system.`, { mend: 'Give one with --name or UMS_CAPSULE_NAME.' });
  }
  return [
    NODE,
    ...AGENT_NODE_FLAGS,
    `${APP}/src/agent/main.ts`,
    `--name=${name}`,
    `--peer-address=${flags.peerAddress ?? ownAddress()}`,
    '--listen-address=0.0.0.0',
    `--peer-port=${flags.peerPort}`,
    `--pairing-port=${flags.pairingPort}`,
    `--bundle-output=${OUTPUT.out}`,
    `--bundle-errors=${OUTPUT.err}`,
    `--state-dir=${STATE_DIR}`,
    `--run-dir=${RUN_DIR}`,
    '--log-level=warn',
  ];
}

function ownAddress(): string {
  const all = Object.values(networkInterfaces()).flatMap((each) => each ?? []);
  const address = all.find((each) => !each.internal && each.family === 'IPv4')?.address;
  return address ?? '127.0.0.1';
}

/** Whether something is under way that has a hand on the service; throws while the agent does not answer. */
async function migrating(): Promise<boolean> {
  const client = new AgentClient({ name: 'capsule', socket: `${RUN_DIR}/api/agent.sock` });
  try {
    return (await client.migrations()).some((each) => each.state !== 'done' && each.state !== 'aborted');
  } finally {
    await client.close();
  }
}
