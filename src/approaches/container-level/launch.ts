import { existsSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { ownHost } from '#src/drivers/marathon/index.ts';
import { runApp } from '#src/drivers/marathon/launch.ts';
import { NomadApi } from '#src/drivers/nomad/api.ts';
import { runJob } from '#src/drivers/nomad/launch.ts';
import { createService, swarmInfo } from '#src/drivers/swarm/api.ts';
import { run, type RunResult } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { capsuleApp, capsuleJob } from './launch-scheduled.ts';
import { CAPSULE_IMAGE, INIT } from './layout.ts';
import { CAPABILITIES, SECURITY_OPTIONS } from './needs.ts';

/**
 * Starts an empty capsule under an engine of this host, with that engine's own command, as a person would: the engine
 * shall see a container like any other, made by nobody special.
 */
export interface Launch {
  name: string;
  /** What follows the capsule's entry point. */
  args: readonly string[];
  /** What the service may have been given where it comes from; what is not for everybody is left out. */
  capabilities: readonly string[];
  /** Published by the host; where the capsule shares the host's network they are open by themselves. */
  ports: readonly Published[];
}

export interface Published {
  host: number;
  inside: number;
  protocol: string;
}

interface Launcher {
  image: string;
  hasImage(): Promise<boolean>;
  start(launch: Launch): Promise<void>;
}

/** What engines grant to any container; runc grants less by itself. */
export const USUAL: readonly string[] =
  'CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE SYS_CHROOT SETFCAP'.split(' ');
/** What some engines grant to any container and others do not: a process that has it cannot be restored without. */
export const OF_SOME: readonly string[] = ['NET_RAW', 'MKNOD', 'AUDIT_WRITE'];

/** A capsule's own needs, and what its service may have had elsewhere as a container like any other. Nothing beyond. */
export function granted(asked: readonly string[]): string[] {
  return [...CAPABILITIES, ...OF_SOME.filter((name) => asked.includes(name))];
}

const START_LIMIT_MS = 120_000;
const LOCAL_IMAGE = `localhost/${CAPSULE_IMAGE}`;

function command(program: string, args: readonly string[], okExitCodes: readonly number[] = [0]): Promise<RunResult> {
  return run(program, args, { timeout_ms: START_LIMIT_MS, okExitCodes });
}

async function knows(program: string, args: readonly string[]): Promise<boolean> {
  return (await command(program, args, [0, 1, 125])).exitCode === 0;
}

const published = (ports: readonly Published[]): string[] =>
  ports.flatMap(({ host, inside, protocol }) => ['--publish', `${host}:${inside}/${protocol}`]);

function likeDocker(program: 'podman' | 'docker', image: string): Launcher {
  const unconfined = SECURITY_OPTIONS.flatMap((option) => ['--security-opt', option]);
  return {
    image,
    hasImage: () => knows(program, ['image', 'inspect', '--format', '{{.Id}}', image]),
    start: async ({ name, args, ports, capabilities }) => {
      const grants = granted(capabilities).flatMap((each) => ['--cap-add', each]);
      const options = ['--detach', '--name', name, ...grants, ...unconfined, ...published(ports)];
      await command(program, ['run', ...options, image, ...args]);
    },
  };
}

const inContainerd = (namespace: string, ...words: string[]): [string, string[]] => [
  'ctr',
  ['-n', namespace, ...words],
];

async function containerdHas(namespace: string): Promise<boolean> {
  const [program, words] = inContainerd(namespace, 'images', 'ls', '-q', `name==${LOCAL_IMAGE}`);
  return (await command(program, words)).stdout.trim() === LOCAL_IMAGE;
}

const NAMESPACE = process.env['CONTAINERD_NAMESPACE'] ?? 'default';

const containerd: Launcher = {
  image: LOCAL_IMAGE,
  hasImage: () => containerdHas(NAMESPACE),
  start: async ({ name, args, capabilities }) => {
    const caps = granted(capabilities).flatMap((each) => ['--cap-add', `CAP_${each}`]);
    // ctr publishes no ports, and asks for a share of the processor that not every host has to give.
    const options = ['--detach', '--null-io', '--cpu-shares', '0', '--net-host', ...caps];
    const [program, words] = inContainerd(NAMESPACE, 'run', ...options, LOCAL_IMAGE, name, INIT, ...args);
    await command(program, words);
  },
};

const kubernetes: Launcher = {
  image: LOCAL_IMAGE,
  hasImage: () => containerdHas('k8s.io'),
  start: async ({ name, args, ports, capabilities }) => {
    const pod = {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name },
      spec: {
        containers: [
          {
            name: 'main',
            image: LOCAL_IMAGE,
            imagePullPolicy: 'IfNotPresent',
            args,
            ports: ports.map(({ host, inside, protocol }) => ({
              containerPort: inside,
              hostPort: host,
              protocol: protocol.toUpperCase(),
            })),
            securityContext: { runAsUser: 0, capabilities: { add: granted(capabilities) } },
          },
        ],
      },
    };
    await run('kubectl', ['create', '-f', '-'], { timeout_ms: START_LIMIT_MS, input: JSON.stringify(pod) });
  },
};

const configSchema = z.looseObject({
  process: z.looseObject({}),
  root: z.looseObject({}),
  linux: z.looseObject({ namespaces: z.array(z.looseObject({ type: z.string() })) }),
});

/** runc keeps no images: Podman's store has the capsule's, and the bundle gets a copy of its files. */
const runc: Launcher = {
  image: LOCAL_IMAGE,
  hasImage: () => knows('podman', ['image', 'inspect', '--format', '{{.Id}}', LOCAL_IMAGE]),
  start: async ({ name, args, capabilities }) => {
    const bundle = `/srv/${name}`;
    if (existsSync(bundle)) throw bundleTaken(bundle);
    await mkdir(join(bundle, 'rootfs'), { recursive: true, mode: 0o700 });
    const mounted = (await command('podman', ['image', 'mount', LOCAL_IMAGE])).stdout.trim();
    try {
      await command('cp', ['--archive', `${mounted}/.`, join(bundle, 'rootfs')]);
    } finally {
      await command('podman', ['image', 'unmount', LOCAL_IMAGE]);
    }
    await command('runc', ['spec', '--bundle', bundle]);
    const path = join(bundle, 'config.json');
    const config = configSchema.parse(JSON.parse(await readFile(path, 'utf8')));
    const caps = [...new Set([...USUAL, ...granted(capabilities)])].map((each) => `CAP_${each}`);
    config.process['terminal'] = false;
    config.process['args'] = [INIT, ...args];
    config.process['capabilities'] = { bounding: caps, effective: caps, permitted: caps };
    config.root['readonly'] = false;
    // Nobody makes a network for a bundle, so it has its host's.
    config.linux.namespaces = config.linux.namespaces.filter(({ type }) => type !== 'network');
    await writeFile(path, JSON.stringify(config, undefined, 2));
    const script = 'exec runc run --detach --bundle "$1" "$2" </dev/null >/dev/null 2>&1';
    await command('sh', ['-c', script, 'sh', bundle, name]);
  },
};

function bundleTaken(bundle: string): UmsError {
  return new UmsError('UMS_E_NAME_TAKEN', {
    message: `${bundle} is there already.`,
    fault: 'destination',
    state: 'Nothing was changed.',
    mend: 'Remove it, or start an empty capsule of that name by hand.',
  });
}

const INSPECT_IMAGE = ['image', 'inspect', '--format', '{{.Id}}', CAPSULE_IMAGE];
/** Schedulers whose containers are Docker's take the image from there. */
const fromDocker = { image: CAPSULE_IMAGE, hasImage: () => knows('docker', INSPECT_IMAGE) };

/** Some ask a registry for a name, or wait for its answer; for an id none does. */
async function imageId(): Promise<string> {
  return (await command('docker', INSPECT_IMAGE)).stdout.trim();
}

/** By Docker's interface, because no command of Docker's lets a service go without a seccomp filter. */
const swarm: Launcher = {
  ...fromDocker,
  start: async ({ name, args, capabilities }) => {
    const { NodeID: node } = await swarmInfo();
    await createService({
      Name: name,
      TaskTemplate: {
        ContainerSpec: {
          Image: await imageId(),
          Args: args,
          CapabilityAdd: granted(capabilities).map((each) => `CAP_${each}`),
          Privileges: { Seccomp: { Mode: 'unconfined' }, AppArmor: { Mode: 'disabled' } },
        },
        // Its ports are those of the host that it is started on: a capsule's agent is reached there.
        Networks: [{ Target: 'host' }],
        Placement: { Constraints: [`node.id==${node}`] },
        // One that has ended, because its service has or has moved on, is not begun anew.
        RestartPolicy: { Condition: 'none' },
      },
      Mode: { Replicated: { Replicas: 1 } },
    });
  },
};

/** A job on the node that this host is. */
const nomad: Launcher = {
  ...fromDocker,
  start: async ({ name, args, capabilities }) => {
    const api = NomadApi.here();
    const [image, node] = await Promise.all([imageId(), api.ownNode()]);
    if (node === undefined) throw noNode();
    const { ID: id, Datacenter: datacenter, NodePool: pool } = node;
    const place = { node: id, datacenter, pool, namespace: api.namespace };
    await runJob(capsuleJob({ name, args, image, grants: granted(capabilities) }, place), api);
  },
};

function noNode(): UmsError {
  return new UmsError('UMS_E_ENGINE', {
    message: 'The agent of Nomad that answers is a server alone, and runs nothing.',
    fault: 'destination',
    state: 'Nothing was changed.',
    mend: 'Name the agent that is a client on this host by NOMAD_ADDR in the environment of the agent of ums.',
  });
}

/** An app on this host. Mesos takes an image that Docker has by its name, unless it is told to ask for a newer one. */
const marathon: Launcher = {
  ...fromDocker,
  start: async ({ name, args, capabilities }) => {
    await runApp(name, capsuleApp({ args, image: CAPSULE_IMAGE, grants: granted(capabilities) }, ownHost()));
  },
};

const LAUNCHERS: Readonly<Record<string, Launcher>> = {
  podman: likeDocker('podman', LOCAL_IMAGE),
  docker: likeDocker('docker', CAPSULE_IMAGE),
  containerd,
  kubernetes,
  runc,
  swarm,
  nomad,
  marathon,
};

export function launcherOf(engine: string): Launcher | undefined {
  return LAUNCHERS[engine];
}
