import { removeBundle, runImageBundle } from '#lab/bundle.ts';
import type { Host } from '#lab/host.ts';
import { removeSwarmService, runSwarmService, swarmContainer, swarmServices } from '#lab/swarm.ts';
import { USUAL } from '#src/approaches/container-level/launch.ts';
import { CAPABILITIES, SECURITY_OPTIONS } from '#src/approaches/container-level/needs.ts';
import { INIT } from '#src/approaches/container-level/layout.ts';
import type { RunResult } from '#src/telemetry/exec.ts';
import { runBundle } from '../pulse/service.ts';
import type { Engine } from './plan.ts';

/** Programs that prove their state, each an image that lies ready on a test host. */
export type Workload = 'pulse' | 'growing';

/** Containers as a person has them with each engine: by its own commands alone. */
export interface Container {
  name: string;
  image: Workload | 'capsule';
  /** The workload's command line, or what follows the capsule's entry point. */
  args: readonly string[];
  /** TCP, under the same number on the host. */
  ports: readonly number[];
}

export interface Commands {
  run(host: Host, container: Container): Promise<void>;
  /** Every exit status is an answer. */
  exec(host: Host, name: string, args: readonly string[]): Promise<RunResult>;
  /** Absent already is fine. */
  remove(host: Host, name: string): Promise<void>;
  names(host: Host): Promise<string[]>;
}

const LIMIT_MS = 180_000;
const ANY_STATUS = Array.from({ length: 256 }, (_, code) => code);
/** Where capsules find the images that lie ready on a test host. */
const IMAGES = { host: '/opt/images', inside: '/srv/images' };
export const IMAGES_INSIDE = IMAGES.inside;

async function lines(host: Host, program: string, args: readonly string[]): Promise<string[]> {
  const { stdout } = await host.exec(program, args, { timeout_ms: LIMIT_MS });
  return stdout.split('\n').filter((line) => line !== '');
}

const execBy =
  (program: string, words: (name: string) => string[]) =>
  (host: Host, name: string, args: readonly string[]): Promise<RunResult> =>
    host.exec(program, [...words(name), ...args], { timeout_ms: LIMIT_MS, okExitCodes: ANY_STATUS });

function likeDocker(engine: 'podman' | 'docker'): Commands {
  const grants = [
    ...CAPABILITIES.flatMap((name) => ['--cap-add', name]),
    ...SECURITY_OPTIONS.flatMap((option) => ['--security-opt', option]),
    '--volume',
    `${IMAGES.host}:${IMAGES.inside}:ro`,
  ];
  return {
    run: async (host, { name, image, args, ports }) => {
      const options = image === 'capsule' ? grants : [];
      const published = ports.flatMap((port) => ['--publish', `${port}:${port}`]);
      const reference = await host.importImage(image, engine);
      const line = ['run', '--detach', '--name', name, ...options, ...published, reference, ...args];
      await host.exec(engine, line, { timeout_ms: LIMIT_MS });
    },
    exec: execBy(engine, (name) => ['exec', name]),
    remove: async (host, name) => {
      const atOnce = engine === 'podman' ? ['--ignore', '--time', '0'] : [];
      const line = ['rm', '--force', '--volumes', ...atOnce, name];
      // Docker fails where there is nothing to remove.
      await host.exec(engine, line, { timeout_ms: LIMIT_MS, okExitCodes: engine === 'podman' ? [0] : [0, 1] });
    },
    names: (host) => lines(host, engine, ['ps', '--all', '--format', '{{.Names}}']),
  };
}

let executions = 0;

const containerd: Commands = {
  run: async (host, { name, image, args }) => {
    const reference = await host.importImage(image, 'containerd');
    const capsule = image === 'capsule';
    const mount = `type=bind,src=${IMAGES.host},dst=${IMAGES.inside},options=rbind:ro`;
    // It knows no published ports: who shall be reached shares the host's network.
    const options = ['--net-host', '--mount', mount, ...CAPABILITIES.flatMap((each) => ['--cap-add', `CAP_${each}`])];
    const line = ['run', '--detach', '--null-io', '--cpu-shares', '0', ...(capsule ? options : []), reference, name];
    await host.exec('ctr', [...line, ...(capsule ? [INIT] : []), ...args], { timeout_ms: LIMIT_MS });
  },
  exec: execBy('ctr', (name) => {
    executions += 1;
    return ['tasks', 'exec', '--exec-id', `matrix-${process.pid}-${executions}`, name];
  }),
  remove: async (host, name) => {
    if (!(await containerd.names(host)).includes(name)) return;
    const script = 'ctr tasks rm --force "$1" >/dev/null 2>&1 || true; ctr containers rm "$1"';
    await host.exec('sh', ['-ec', script, 'sh', name], { timeout_ms: LIMIT_MS });
  },
  names: (host) => lines(host, 'ctr', ['containers', 'ls', '--quiet']),
};

function podOf({ name, image, args, ports }: Container, reference: string): object {
  const capsule = image === 'capsule';
  const container = {
    name: 'main',
    image: reference,
    imagePullPolicy: 'IfNotPresent',
    ...(capsule ? { args } : { command: args }),
    ports: ports.map((port) => ({ containerPort: port, hostPort: port })),
    ...(capsule
      ? {
          securityContext: { runAsUser: 0, capabilities: { add: CAPABILITIES } },
          volumeMounts: [{ name: 'images', mountPath: IMAGES.inside, readOnly: true }],
        }
      : {}),
  };
  const volumes = capsule ? [{ name: 'images', hostPath: { path: IMAGES.host } }] : [];
  // A token is the cluster's own: another engine could not give one.
  const spec = { automountServiceAccountToken: false, containers: [container], volumes };
  return { apiVersion: 'v1', kind: 'Pod', metadata: { name }, spec };
}

const kubernetes: Commands = {
  run: async (host, container) => {
    const pod = podOf(container, await host.importImage(container.image, 'kubernetes'));
    await host.exec('kubectl', ['apply', '-f', '-'], { input: JSON.stringify(pod), timeout_ms: LIMIT_MS });
    const wait = ['wait', '--for=condition=Ready', `pod/${container.name}`, `--timeout=${LIMIT_MS / 2000}s`];
    await host.exec('kubectl', wait, { timeout_ms: LIMIT_MS });
  },
  exec: execBy('kubectl', (name) => ['exec', name, '--']),
  remove: async (host, name) => {
    const line = ['delete', 'pod', name, '--ignore-not-found', '--grace-period=1', '--wait'];
    await host.exec('kubectl', line, { timeout_ms: LIMIT_MS });
  },
  names: async (host) =>
    (await lines(host, 'kubectl', ['get', 'pods', '-o', 'name'])).map((each) => each.replace(/^pod\//, '')),
};

/** Who shall be reached shares the host's network. */
const swarm: Commands = {
  run: async (host, { name, image, args }) => {
    const reference = await host.importImage(image, 'swarm');
    const capsule = { capabilities: CAPABILITIES, mounts: [{ source: IMAGES.host, target: IMAGES.inside }] };
    await runSwarmService(host, { name, image: reference, args, ...(image === 'capsule' ? capsule : {}) });
  },
  exec: async (host, name, args) => {
    const container = await swarmContainer(host, name);
    if (container === undefined) return { stdout: '', stderr: `${name} has no task that runs`, exitCode: 1 };
    return await host.exec('docker', ['exec', container, ...args], { timeout_ms: LIMIT_MS, okExitCodes: ANY_STATUS });
  },
  remove: removeSwarmService,
  names: swarmServices,
};

const runc: Commands = {
  run: async (host, { name, image, args }) => {
    if (image !== 'capsule') return await runBundle(host, name, args, false, image);
    const capabilities = [...USUAL, ...CAPABILITIES];
    const mounts = [{ destination: IMAGES.inside, source: IMAGES.host, type: 'bind', options: ['rbind', 'ro'] }];
    const reference = await host.importImage('capsule', 'podman');
    await runImageBundle(host, { name, image: reference, args: [INIT, ...args], capabilities, mounts });
  },
  exec: execBy('runc', (name) => ['exec', name]),
  remove: removeBundle,
  names: (host) => lines(host, 'runc', ['list', '--quiet']),
};

export const COMMANDS: Readonly<Record<Engine, Commands>> = {
  podman: likeDocker('podman'),
  docker: likeDocker('docker'),
  containerd,
  kubernetes,
  swarm,
  runc,
};
