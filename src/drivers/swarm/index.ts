import { UmsError } from '#src/telemetry/errors.ts';
import type {
  AfterCheckpoint,
  CreatedService,
  Driver,
  EngineFingerprint,
  Finding,
  ServiceDescription,
  ServiceState,
  ServiceSummary,
} from '../contract.ts';
import { inspectContainer, isInstalled } from '../docker/api.ts';
import { specificationOf } from '../docker/describe.ts';
import { dockerFingerprint } from '../docker/fingerprint.ts';
import { describeImage } from '../docker/images.ts';
import type { Inspect } from '../docker/schema.ts';
import { addressOf, volumesOf } from '../docker/surroundings.ts';
import { freezerOf, poll, processesOf } from '../oci/cgroup.ts';
import { findingOf } from '../oci/findings.ts';
import { ServiceErrors } from '../oci/service-errors.ts';
import type { Specification } from '../specification.ts';
import {
  inspectService,
  listServices,
  removeService,
  scale,
  type Service,
  swarmInfo,
  type SwarmInfo,
  type Task,
  tasksOf,
} from './api.ts';
import { readHandle, writeHandle } from './handle.ts';

/**
 * Services of Docker Swarm, as far as they are capsules: Swarm makes every container of a service itself, so one that was
 * restored could not take a place in it. What moves is the service within the capsule; this driver finds, starts, stops
 * and removes the service of Swarm around it. It is used by an agent on a manager, for services of one task that runs there.
 */
const END_LIMIT_MS = 60_000;
const START_LIMIT_MS = 120_000;
const LOOK_MS = 100;
/** A task in one of these is or soon will be a container. */
const ALIVE = ['new', 'allocated', 'pending', 'assigned', 'accepted', 'preparing', 'ready', 'starting', 'running'];

const WHY = 'Swarm makes each container of a service itself, and would make another one beside one that was restored.';
const MEND = 'Run it in a capsule (ums capsule wrap): the service within moves (docs/container-level.md).';

const errors = new ServiceErrors('Swarm', {
  list: 'docker service ls',
  run: (name) => `Give it one task (docker service scale ${name}=1)`,
  free: (name) => `docker service rm ${name}`,
});

/** The service, and its task on this node with the container that is or was it. */
interface Seen {
  service: Service;
  task: Task | undefined;
  inspect: Inspect | undefined;
}

export class SwarmDriver implements Driver {
  readonly engine = 'swarm';
  readonly whyNotLazy = WHY;

  fingerprint(): Promise<EngineFingerprint> {
    return dockerFingerprint(this.engine, async () => {
      const { ControlAvailable: isManager, LocalNodeState: state } = await swarmInfo();
      if (isManager) return undefined;
      const problem = `this host is no manager of a swarm (${state})`;
      return { problem, mend: 'docker swarm init, or docker node promote on a manager' };
    });
  }

  async list(): Promise<ServiceSummary[]> {
    if (!isInstalled()) return [];
    const swarm = await swarmInfo();
    if (!swarm.ControlAvailable) return [];
    const summaries: ServiceSummary[] = [];
    for (const service of await listServices()) {
      const seen = await see(service, swarm);
      if (seen !== undefined) summaries.push(summaryOf(seen));
    }
    return summaries;
  }

  async describe(reference: string): Promise<ServiceDescription> {
    const summary = errors.find(reference, await this.list());
    const service = await inspectService(summary.id);
    const seen = service === undefined ? undefined : await see(service, await swarmInfo());
    if (seen === undefined) throw errors.unknown(reference);
    const { inspect } = seen;
    refuseOthers(seen);
    if (inspect === undefined) throw errors.notRunning(summary.name, 'stopped');
    const [image, volumes] = await Promise.all([describeImage(inspect), volumesOf(inspect)]);
    const specification = specificationOf({ ...inspect, Name: `/${summary.name}` }, image, volumes);
    return {
      summary,
      specification: { ...specification, engine: 'swarm', labels: withoutMarks(specification.labels) },
      handle: writeHandle({ v: 1, engine: 'swarm', id: summary.id, name: summary.name }),
      trees: [],
      losses: [],
    };
  }

  async state(handle: string): Promise<ServiceState> {
    const seen = await find(handle);
    return seen === undefined ? 'absent' : stateOf(seen);
  }

  async processes(handle: string): Promise<number[]> {
    const pid = (await find(handle))?.inspect?.State.Pid ?? 0;
    const freezer = pid === 0 ? undefined : await freezerOf(pid);
    return freezer === undefined ? [] : await processesOf(freezer);
  }

  async address(handle: string): Promise<string | undefined> {
    const inspect = (await find(handle))?.inspect;
    return inspect === undefined ? undefined : addressOf(inspect);
  }

  canCreate({ name }: Specification): Promise<Finding[]> {
    const what = `${name} cannot be made a service of Swarm with what it is at this moment.`;
    return Promise.resolve([findingOf('error', 'approach.orchestrator-level', what, WHY, MEND)]);
  }

  /** Nothing is made of one here. */
  hasImage(): Promise<boolean> {
    return Promise.resolve(true);
  }

  imageLayers(): Promise<string[]> {
    return Promise.resolve([]);
  }

  findCreated(): Promise<CreatedService | undefined> {
    return Promise.resolve(undefined);
  }

  exportImage = refused;
  importImage = refused;
  create = refused;
  freeze = refused;
  prepareCheckpoint = refused;
  checkpoint = refused;
  prepareRestore = refused;
  restore = refused;
  resume = refused;
  startFresh = refused;
  restartFresh = refused;

  /** Nothing of it was ever frozen here. */
  thaw(): Promise<void> {
    return Promise.resolve();
  }

  descriptors(): Promise<undefined> {
    return Promise.resolve(undefined);
  }

  afterCheckpoint(): AfterCheckpoint {
    return { ended: Promise.resolve(), holds: Promise.resolve() };
  }

  throttle(): Promise<boolean> {
    return Promise.resolve(false);
  }

  async remove(handle: string): Promise<void> {
    const seen = await find(handle);
    if (seen === undefined) return;
    await removeService(seen.service.ID);
    await untilEnded(seen);
  }

  /** Swarm keeps the service with no task, and makes none by itself. */
  async discard(handle: string): Promise<void> {
    const seen = await find(handle);
    if (seen === undefined) return;
    if (replicasOf(seen.service) !== 0) await scale(seen.service, 0);
    await untilEnded(seen);
  }

  adopt(): Promise<void> {
    return Promise.resolve();
  }

  settle(): Promise<void> {
    return Promise.resolve();
  }

  async stop(handle: string): Promise<void> {
    if ((await find(handle)) === undefined) throw errors.gone(readHandle(handle).name);
    await this.discard(handle);
  }

  async start(handle: string): Promise<void> {
    const seen = await find(handle);
    const { name } = readHandle(handle);
    if (seen === undefined) throw errors.gone(name);
    if (replicasOf(seen.service) !== 1) await scale(seen.service, 1);
    if (await poll(async () => (await this.state(handle)) === 'running', START_LIMIT_MS, LOOK_MS)) return;
    throw new UmsError('UMS_E_ENGINE', {
      message: `${name} did not start: ${(await find(handle))?.task?.Status.Err ?? 'Swarm says nothing'}`,
      fault: 'service',
      mend: `docker service ps --no-trunc ${name}`,
    });
  }
}

function refused(): Promise<never> {
  return Promise.reject(
    new UmsError('UMS_E_APPROACH', {
      message: 'A container of Swarm’s is neither dumped nor restored by ums.',
      fault: 'user',
      state: 'Nothing was changed.',
      mend: MEND,
      detail: WHY,
    }),
  );
}

async function find(handle: string): Promise<Seen | undefined> {
  const service = await inspectService(readHandle(handle).id);
  return service === undefined ? undefined : { service, ...(await taskHere(service, await swarmInfo())) };
}

/** Undefined for a service that has its tasks elsewhere. */
async function see(service: Service, swarm: SwarmInfo): Promise<Seen | undefined> {
  const here = await taskHere(service, swarm);
  const isIdle = replicasOf(service) === 0;
  return here.task === undefined && !isIdle ? undefined : { service, ...here };
}

async function taskHere(
  { ID: id }: Service,
  { NodeID: node }: SwarmInfo,
): Promise<{ task: Task | undefined; inspect: Inspect | undefined }> {
  const tasks = (await tasksOf(id)).filter(({ NodeID }) => NodeID === node);
  const task = tasks.find(({ DesiredState: wanted }) => ALIVE.includes(wanted)) ?? tasks[0];
  const container = task?.Status.ContainerStatus?.ContainerID ?? '';
  return { task, inspect: container === '' ? undefined : await inspectContainer(container) };
}

function replicasOf({ Spec: spec }: Service): number | undefined {
  return spec.Mode.Replicated?.Replicas;
}

function stateOf({ inspect }: Seen): ServiceState {
  return inspect !== undefined && inspect.State.Pid > 0 ? 'running' : 'stopped';
}

function summaryOf(seen: Seen): ServiceSummary {
  const { service, inspect } = seen;
  return {
    engine: 'swarm',
    id: service.ID,
    name: service.Spec.Name,
    state: stateOf(seen),
    image: service.Spec.TaskTemplate.ContainerSpec?.Image ?? '',
    pid: inspect?.State.Pid ?? 0,
    ports: [],
    created_at: new Date(service.CreatedAt).toISOString(),
  };
}

/** There is one service within a capsule: of several tasks, or of one on every node, it could not be said which moves. */
function refuseOthers({ service }: Seen): void {
  const replicas = replicasOf(service);
  if (replicas !== undefined && replicas <= 1) return;
  throw new UmsError('UMS_E_SPECIFICATION', {
    message: `${service.Spec.Name} has ${replicas === undefined ? 'a task on every node' : `${replicas} tasks`}, and only a service of one can move`,
    fault: 'user',
    state: 'Nothing was changed.',
    mend: `docker service scale ${service.Spec.Name}=1, or a service for each of them`,
  });
}

function withoutMarks(labels: Readonly<Record<string, string>>): Record<string, string> {
  return Object.fromEntries(Object.entries(labels).filter(([name]) => !name.startsWith('com.docker.swarm.')));
}

async function untilEnded({ service, inspect }: Seen): Promise<void> {
  if (inspect === undefined) return;
  const ended = async () => ((await inspectContainer(inspect.Id))?.State.Pid ?? 0) === 0;
  if (await poll(ended, END_LIMIT_MS, LOOK_MS)) return;
  throw new UmsError('UMS_E_ENGINE', {
    message: `The task of ${service.Spec.Name} has not ended within ${END_LIMIT_MS} ms`,
    fault: 'source',
    mend: `docker service ps ${service.Spec.Name}`,
  });
}

export function createSwarmDriver(): Driver {
  return new SwarmDriver();
}
