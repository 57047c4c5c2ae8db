import { setTimeout as sleep } from 'node:timers/promises';
import { UmsError } from '#src/telemetry/errors.ts';
import type { RunResult } from '#src/telemetry/exec.ts';
import { startDaemon } from './daemon.ts';
import { DOCKER } from './docker.ts';
import type { Host } from './host.ts';
import { PATIENCE } from './patience.ts';

/** Docker Swarm on test hosts: each is a swarm of its own, with itself as its one manager. */
const LIMIT_MS = 120_000 * PATIENCE;
const POLL_MS = 100;
const SOCKET = '/var/run/docker.sock';

export async function startSwarm(host: Host): Promise<void> {
  await startDaemon(host, DOCKER);
  const state = await host.exec('docker', ['info', '--format', '{{.Swarm.LocalNodeState}}']);
  if (state.stdout.trim() === 'active') return;
  await host.exec('docker', ['swarm', 'init', '--advertise-addr', host.address], { timeout_ms: LIMIT_MS });
}

/** A service of one task, on its host's network. */
export interface SwarmService {
  name: string;
  /** As Docker on that host knows it. */
  image: string;
  /** What follows the image's entry point. */
  args: readonly string[];
  env?: readonly string[];
  /** Without `CAP_`. With any, it has no seccomp filter and no AppArmor profile either. */
  capabilities?: readonly string[];
  /** Directories of the host that it sees, read-only. */
  mounts?: readonly { source: string; target: string }[];
}

/** By Docker's interface, as Docker's command knows no service without a seccomp filter. Resolves when its task runs. */
export async function runSwarmService(host: Host, service: SwarmService): Promise<RunResult> {
  const { name, args, env = [], capabilities = [], mounts = [] } = service;
  const asked = ['image', 'inspect', '--format', '{{.Id}}', service.image];
  const unconfined = { Privileges: { Seccomp: { Mode: 'unconfined' }, AppArmor: { Mode: 'disabled' } } };
  const spec = {
    Name: name,
    TaskTemplate: {
      ContainerSpec: {
        // By its id: for a name Swarm asks a registry, and waits for the answer.
        Image: (await host.exec('docker', asked)).stdout.trim(),
        Args: args,
        Env: env,
        CapabilityAdd: capabilities.map((each) => `CAP_${each}`),
        Mounts: mounts.map(({ source, target }) => ({ Type: 'bind', Source: source, Target: target, ReadOnly: true })),
        ...(capabilities.length === 0 ? {} : unconfined),
      },
      Networks: [{ Target: 'host' }],
      RestartPolicy: { Condition: 'none' },
    },
    Mode: { Replicated: { Replicas: 1 } },
  };
  const request = ['--fail-with-body', '--silent', '--show-error', '--unix-socket', SOCKET, '--data', '@-'];
  const made = await host.exec(
    'curl',
    [...request, '--header', 'content-type: application/json', 'http://docker/v1.44/services/create'],
    { input: JSON.stringify(spec) },
  );
  const limit = Date.now() + LIMIT_MS;
  while ((await swarmContainer(host, name)) === undefined) {
    if (Date.now() > limit) {
      const { stdout } = await host.exec('docker', ['service', 'ps', '--no-trunc', name]);
      const message = `The service ${name} does not run on test host ${host.name}`;
      throw new UmsError('UMS_E_LAB', { message, fault: 'ums', detail: stdout });
    }
    await sleep(POLL_MS);
  }
  return made;
}

const labelled = (name: string): string[] => ['--filter', `label=com.docker.swarm.service.name=${name}`];

/** The container of the service's task, while it runs. */
export async function swarmContainer(host: Host, name: string): Promise<string | undefined> {
  const { stdout } = await host.exec('docker', ['ps', '--quiet', ...labelled(name)]);
  return stdout.trim().split('\n')[0] || undefined;
}

/** Whether it is there or not; resolves when its containers are gone. */
export async function removeSwarmService(host: Host, name: string): Promise<void> {
  await host.exec('docker', ['service', 'rm', name], { okExitCodes: [0, 1] });
  const limit = Date.now() + LIMIT_MS;
  for (;;) {
    const { stdout } = await host.exec('docker', ['ps', '--all', '--quiet', ...labelled(name)]);
    if (stdout.trim() === '') return;
    if (Date.now() > limit) {
      const message = `Containers of the service ${name} stay on test host ${host.name}`;
      throw new UmsError('UMS_E_LAB', { message, fault: 'ums', detail: stdout });
    }
    await sleep(POLL_MS);
  }
}

export async function swarmServices(host: Host): Promise<string[]> {
  const { stdout } = await host.exec('docker', ['service', 'ls', '--format', '{{.Name}}']);
  return stdout.split('\n').filter((name) => name !== '');
}
