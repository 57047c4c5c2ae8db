import { once } from 'node:events';
import { OF_SOME, USUAL } from '#src/approaches/container-level/launch.ts';
import { HOME, INIT_COMMAND, LAYOUT } from '#src/drivers/init/layout.ts';
import type { RunResult } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { removeBundle, runImageBundle } from './bundle.ts';
import { readOrEmpty } from './cgroup.ts';
import { KUBERNETES_NAMESPACE } from './containerd.ts';
import type { Host } from './host.ts';
import { removeSwarmService, runSwarmService } from './swarm.ts';

/** Migratable images (docs/service-level.md) on test hosts: built there, loaded, and started as a person would. */
export type MigratableEngine = 'podman' | 'docker' | 'swarm' | 'containerd' | 'kubernetes' | 'runc';

/** What must be granted beside what an engine grants by itself. */
export const GRANTS = ['--cap-add', 'CHECKPOINT_RESTORE', '--security-opt', 'seccomp=unconfined'];
/** The same where nothing is granted by itself. */
export const LEAST_GRANTS = ['--cap-drop', 'ALL', '--cap-add', 'SETPCAP', ...GRANTS];

const BUILD_LIMIT_MS = 300_000;
const LOAD_LIMIT_MS = 180_000;
const START_LIMIT_MS = 60_000;

/** A container, and where its engine runs it. */
export interface MigratablePlace {
  host: Host;
  engine: MigratableEngine;
  /** Also the name of the system that it is. */
  container: string;
  /** Its agent's port for peers, published by the host; the next one is for pairing. */
  port: number;
}

type Store = Pick<MigratablePlace, 'host' | 'engine'>;

/** Makes a migratable image of one that a host has in Podman, and loads it into the engines of others. */
export async function buildMigratableFor(
  builder: Host,
  places: readonly Store[],
  image: string,
  name: string,
  files: readonly string[],
): Promise<void> {
  const archive = `/srv/${name}.tar`;
  const options = ['--output', archive, '--name', `localhost/${name}`, ...files.flatMap((path) => ['--files', path])];
  const ums = ['--disable-warning=ExperimentalWarning', '/opt/ums/app/src/cli/main.ts'];
  const build = [...ums, 'image', 'build', 'migratable', image, ...options];
  await builder.exec('node', build, { timeout_ms: BUILD_LIMIT_MS });
  const others = new Map(places.map(({ host }) => [host.name, host]));
  others.delete(builder.name);
  for (const host of others.values()) await copy(builder, host, archive);
  await Promise.all(
    places.map(async ({ host, engine }) => {
      const [program, ...args] = LOAD[engine];
      await host.exec(program, [...args, archive], { timeout_ms: LOAD_LIMIT_MS });
    }),
  );
  for (const host of [builder, ...others.values()]) await host.exec('rm', ['--force', archive]);
}

const LOAD: Readonly<Record<MigratableEngine, readonly [string, ...string[]]>> = {
  podman: ['podman', 'load', '--input'],
  docker: ['docker', 'load', '--input'],
  swarm: ['docker', 'load', '--input'],
  containerd: ['ctr', 'images', 'import'],
  kubernetes: ['ctr', '-n', KUBERNETES_NAMESPACE, 'images', 'import'],
  // Bundles know no images: theirs are furnished from Podman's.
  runc: ['podman', 'load', '--input'],
};

async function copy(from: Host, to: Host, path: string): Promise<void> {
  const read = from.spawn('cat', [path], { stdio: ['ignore', 'pipe', 'inherit'] });
  const write = to.spawn('sh', ['-c', 'cat >"$1"', 'sh', path], { stdio: [read.stdout, 'ignore', 'inherit'] });
  const [code] = await once(write, 'exit');
  if (code === 0) return;
  const message = `${path} could not be copied from ${from.name} to ${to.name}: ${String(code)}`;
  throw new UmsError('UMS_E_LAB', { message, fault: 'ums' });
}

export interface MigratableOptions {
  /** It begins without a service. */
  waits?: boolean;
  /** What its engine is told to grant; a pod is granted what GRANTS says. */
  grants?: readonly string[];
  args?: readonly string[];
  /** More variables of the container. */
  env?: Readonly<Record<string, string>>;
}

/** Starts a container of a migratable image; its agent answers a moment later. */
export async function runMigratable(
  place: MigratablePlace,
  image: string,
  options: MigratableOptions = {},
): Promise<RunResult> {
  const { host, engine, container, port } = place;
  const env = {
    UMS_SYSTEM: container,
    UMS_PEER_ADDRESS: host.address,
    UMS_PEER_PORT: String(port),
    UMS_PAIRING_PORT: String(port + 1),
    ...(options.waits === true ? { UMS_INIT: 'wait' } : {}),
    ...options.env,
  };
  const { args = [] } = options;
  if (engine === 'kubernetes') return runPod(place, image, env, args);
  if (engine === 'containerd') return runByCtr(place, image, env, args);
  if (engine === 'runc') return runInBundle(place, image, env, args);
  if (engine === 'swarm') return runByTask(place, image, env, args);
  const words = [
    'run',
    '--detach',
    `--name=${container}`,
    `--publish=${port}:${port}`,
    `--publish=${port + 1}:${port + 1}`,
    ...(options.grants ?? GRANTS),
    ...assignments(env).flatMap((each) => ['--env', each]),
    `localhost/${image}:latest`,
    ...args,
  ];
  return host.exec(engine, words, { timeout_ms: START_LIMIT_MS });
}

type Variables = Readonly<Record<string, string>>;
const assignments = (env: Variables): string[] => Object.entries(env).map(([name, value]) => `${name}=${value}`);

/** It publishes no ports: who shall be reached shares the host's network. What follows the name replaces the entry point. */
function runByCtr({ host, container }: MigratablePlace, image: string, env: Variables, args: readonly string[]) {
  const options = ['--detach', '--null-io', '--net-host', '--cpu-shares', '0', '--cap-add', 'CAP_CHECKPOINT_RESTORE'];
  const variables = assignments(env).flatMap((each) => ['--env', each]);
  const line = ['run', ...options, ...variables, `localhost/${image}:latest`, container, ...INIT_COMMAND, ...args];
  return host.exec('ctr', line, { timeout_ms: START_LIMIT_MS });
}

function runInBundle({ host, container }: MigratablePlace, image: string, env: Variables, args: readonly string[]) {
  return runImageBundle(host, {
    name: container,
    image: `localhost/${image}:latest`,
    args: [...INIT_COMMAND, ...args],
    // A service goes nowhere where it is not granted what it has, so also what only some engines grant.
    capabilities: [...USUAL, ...OF_SOME, 'CHECKPOINT_RESTORE'],
    env: assignments(env),
  });
}

/** It has its host's network, and so the ports of its agent are there. */
function runByTask({ host, container }: MigratablePlace, image: string, env: Variables, args: readonly string[]) {
  return runSwarmService(host, {
    name: container,
    image: `localhost/${image}`,
    args,
    env: assignments(env),
    capabilities: ['CHECKPOINT_RESTORE'],
  });
}

/** Kubernetes starts containers without a seccomp filter unless it is asked for one. */
function runPod(
  { host, container, port }: MigratablePlace,
  image: string,
  env: Variables,
  args: readonly string[],
): Promise<RunResult> {
  const main = {
    name: 'main',
    image: `localhost/${image}:latest`,
    imagePullPolicy: 'IfNotPresent',
    args,
    env: Object.entries(env).map(([name, value]) => ({ name, value })),
    ports: [port, port + 1].map((each) => ({ containerPort: each, hostPort: each })),
    securityContext: { capabilities: { add: ['CHECKPOINT_RESTORE'] } },
  };
  const spec = { containers: [main], restartPolicy: 'Never' };
  const pod = { apiVersion: 'v1', kind: 'Pod', metadata: { name: container }, spec };
  return host.exec('kubectl', ['create', '-f', '-'], { input: JSON.stringify(pod), timeout_ms: START_LIMIT_MS });
}

const REMOVE_BY_CTR = 'ctr tasks rm --force "$1" 2>/dev/null; ctr containers rm "$1" 2>/dev/null || true';

/** Removes containers, whether they are there or not. */
export async function removeMigratable(...places: readonly MigratablePlace[]): Promise<void> {
  for (const { host, engine, container } of places) {
    if (engine === 'kubernetes') {
      const line = ['delete', 'pod', container, '--ignore-not-found', '--grace-period=1', '--wait'];
      await host.exec('kubectl', line, { timeout_ms: START_LIMIT_MS });
      continue;
    }
    if (engine === 'swarm') {
      await removeSwarmService(host, container);
      continue;
    }
    if (engine === 'runc') {
      await removeBundle(host, container);
      continue;
    }
    if (engine === 'containerd') {
      await host.exec('sh', ['-c', REMOVE_BY_CTR, 'sh', container], { timeout_ms: START_LIMIT_MS });
      continue;
    }
    const found = await host.exec(engine, ['ps', '--all', '--quiet', '--filter', `name=^${container}$`]);
    if (found.stdout.trim() === '') continue;
    // At once: none of them has to end in order, and one may have ended already.
    await host.exec(engine, ['kill', container], { okExitCodes: [0, 1, 125] });
    await host.exec(engine, ['rm', '--force', container], { timeout_ms: START_LIMIT_MS });
  }
}

/**
 * Where the agent in a container has its sockets, as the machine sees it, whatever engine runs the container; undefined
 * while there is no such container.
 */
export function runDirectoryIn({ host, container }: Pick<MigratablePlace, 'host' | 'container'>): string | undefined {
  const init = host.processes().find((pid) => {
    if (!readOrEmpty(`/proc/${pid}/cmdline`).split('\0').includes(LAYOUT.init)) return false;
    // The init forks itself, too; the first process of its namespace is the one that lasts.
    if (!/^NSpid:.*\s1$/m.test(readOrEmpty(`/proc/${pid}/status`))) return false;
    return readOrEmpty(`/proc/${pid}/environ`).split('\0').includes(`UMS_SYSTEM=${container}`);
  });
  return init === undefined ? undefined : `/proc/${init}/root${HOME}/run`;
}
