import type { Driver, EngineFingerprint } from '../contract.ts';
import { inspectContainer, isInstalled } from '../docker/api.ts';
import { dockerFingerprint } from '../docker/fingerprint.ts';
import { notOne, SchedulerDriver, stateOf } from '../scheduler/index.ts';
import type { Scheduled, Scheduler, SchedulerWords } from '../scheduler/scheduled.ts';
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
import { readHandle, type SwarmHandle, writeHandle } from './handle.ts';

/**
 * Services of Docker Swarm. It is used by an agent on a manager, for services of one task that runs there. The handle is
 * that of the service, whatever becomes of its tasks.
 */
/** A task in one of these is or soon will be a container. */
const ALIVE = ['new', 'allocated', 'pending', 'assigned', 'accepted', 'preparing', 'ready', 'starting', 'running'];

const WORDS: SchedulerWords = {
  name: 'Swarm',
  instance: 'task',
  commands: {
    list: 'docker service ls',
    run: (name) => `Give it one task (docker service scale ${name}=1)`,
    free: (name) => `docker service rm ${name}`,
  },
  look: (name) => `docker service ps --no-trunc ${name}`,
  why: 'Swarm makes each container of a service itself, and would make another one beside one that was restored.',
  mend: 'Run it in a capsule (ums capsule wrap): the service within moves (docs/container-level.md).',
};

/** The service, and its task on this node. */
interface Seen extends Scheduled {
  service: Service;
  task: Task | undefined;
}

class SwarmScheduler implements Scheduler<Seen, SwarmHandle> {
  readonly engine = 'swarm';
  readonly words = WORDS;
  readonly keepsContainers = true;
  readonly look_ms = 100;
  readonly readHandle = readHandle;

  fingerprint(): Promise<EngineFingerprint> {
    return dockerFingerprint(this.engine, async () => {
      const { ControlAvailable: isManager, LocalNodeState: state } = await swarmInfo();
      if (isManager) return undefined;
      const problem = `this host is no manager of a swarm (${state})`;
      return { problem, mend: 'docker swarm init, or docker node promote on a manager' };
    });
  }

  async list(): Promise<Seen[]> {
    if (!isInstalled()) return [];
    const swarm = await swarmInfo();
    if (!swarm.ControlAvailable) return [];
    const all: Seen[] = [];
    for (const service of await listServices()) {
      const seen = await see(service, swarm);
      // One that has its tasks elsewhere is not of this host.
      if (seen.task !== undefined || replicasOf(service) === 0) all.push(seen);
    }
    return all;
  }

  async find({ id }: SwarmHandle): Promise<Seen | undefined> {
    const service = await inspectService(id);
    return service === undefined ? undefined : await see(service, await swarmInfo());
  }

  writeHandle({ id, name }: Seen): string {
    return writeHandle({ v: 1, engine: 'swarm', id, name });
  }

  /** Nor could it be said of a service that has a task on every node. */
  refuse({ name, service }: Seen): Promise<void> {
    const replicas = replicasOf(service);
    if (replicas !== undefined && replicas <= 1) return Promise.resolve();
    const what = replicas === undefined ? 'a task on every node' : `${replicas} tasks`;
    return Promise.reject(notOne(name, what, `docker service scale ${name}=1, or a service for each of them`));
  }

  withoutMarks(specification: Specification): Specification {
    const labels = Object.entries(specification.labels).filter(([name]) => !name.startsWith('com.docker.swarm.'));
    return { ...specification, labels: Object.fromEntries(labels) };
  }

  async begin({ service }: Seen): Promise<void> {
    if (replicasOf(service) !== 1) await scale(service, 1);
  }

  async end({ service }: Seen): Promise<void> {
    if (replicasOf(service) !== 0) await scale(service, 0);
  }

  async remove({ service }: Seen): Promise<void> {
    await removeService(service.ID);
  }

  trouble({ task }: Seen): string {
    return task?.Status.Err ?? 'Swarm says nothing';
  }
}

async function see(service: Service, { NodeID: node }: SwarmInfo): Promise<Seen> {
  const tasks = (await tasksOf(service.ID)).filter(({ NodeID }) => NodeID === node);
  const task = tasks.find(({ DesiredState: wanted }) => ALIVE.includes(wanted)) ?? tasks[0];
  const container = task?.Status.ContainerStatus?.ContainerID ?? '';
  const inspect = container === '' ? undefined : await inspectContainer(container);
  return {
    id: service.ID,
    name: service.Spec.Name,
    image: service.Spec.TaskTemplate.ContainerSpec?.Image ?? '',
    created_at: new Date(service.CreatedAt).toISOString(),
    state: stateOf(inspect),
    inspect,
    service,
    task,
  };
}

function replicasOf({ Spec: spec }: Service): number | undefined {
  return spec.Mode.Replicated?.Replicas;
}

export function createSwarmDriver(): Driver {
  return new SchedulerDriver(new SwarmScheduler());
}
