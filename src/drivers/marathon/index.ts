import { hostname, networkInterfaces } from 'node:os';
import { UmsError } from '#src/telemetry/errors.ts';
import type { Driver, EngineFingerprint } from '../contract.ts';
import { type DockerHere, dockerHere } from '../scheduler/docker-here.ts';
import { notOne, SchedulerDriver, stateOf } from '../scheduler/index.ts';
import type { Scheduled, Scheduler, SchedulerWords } from '../scheduler/scheduled.ts';
import type { Specification } from '../specification.ts';
import { isConfigured } from './access.ts';
import { MarathonApi } from './api.ts';
import { type MarathonHandle, readHandle, writeHandle } from './handle.ts';
import type { App, Task } from './schema.ts';

/**
 * Apps of Marathon: those of one instance, which Mesos' Docker containerizer runs on this host. Tested against a contract that
 * was written down (contract.fixtures.jsonl), not against a Marathon that runs.
 */
/** Marathon gives it to every container of Docker's. */
const TASK_LABEL = 'MESOS_TASK_ID';
const RUNNING = 'TASK_RUNNING';
/** Variables and the mount that Marathon and Mesos put into every task. */
const OWN_ENV = /^(?:MESOS_\w+|MARATHON_\w+|HOST|PORTS?|PORT\d+|PORT_\w+)=/;
const OWN_MOUNT = '/mnt/mesos/sandbox';
/** Operators of a constraint by which an app names its hosts. */
const NAMING = ['CLUSTER', 'LIKE', 'IS'];

export const WORDS: SchedulerWords = {
  name: 'Marathon',
  instance: 'task',
  commands: {
    list: 'curl $MARATHON_URL/v2/apps',
    run: (name) => `Give ${name} one instance (Marathon: Scale)`,
    free: (name) => `curl -X DELETE $MARATHON_URL/v2/apps${idOf(name)}`,
  },
  look: (name) => `curl "$MARATHON_URL/v2/apps${idOf(name)}?embed=app.lastTaskFailure" and "$MARATHON_URL/v2/queue"`,
  why: 'Marathon makes each container of an app itself, and would make another one beside one that was restored.',
  mend: 'Run it in a capsule (ums capsule wrap): the service within moves (docs/container-level.md).',
};

/** The app, and its task on this host. */
export interface Seen extends Scheduled {
  app: App;
  task: Task | undefined;
}

export interface MarathonOptions {
  docker?: DockerHere;
  api?: () => MarathonApi;
  installed?: () => boolean;
  /** By which Mesos may know this host. */
  names?: () => string[];
}

export class MarathonScheduler implements Scheduler<Seen, MarathonHandle> {
  readonly engine = 'marathon';
  readonly words = WORDS;
  /** What has ended stays a while, but of an app without instances Marathon does not tell which task was its last. */
  readonly keepsContainers = false;
  readonly look_ms = 500;
  readonly readHandle = readHandle;
  readonly #docker: DockerHere;
  readonly #api: () => MarathonApi;
  readonly #installed: () => boolean;
  readonly #names: () => string[];

  constructor({
    docker = dockerHere,
    api = () => MarathonApi.here(),
    installed = isConfigured,
    names = ownNames,
  }: MarathonOptions = {}) {
    this.#docker = docker;
    this.#api = api;
    this.#installed = installed;
    this.#names = names;
  }

  async fingerprint(): Promise<EngineFingerprint> {
    if (!this.#installed()) {
      const problem = 'nobody has said where Marathon is';
      const mend = 'Name it by MARATHON_URL in the environment of the agent';
      return { engine: this.engine, available: false, problem, mend, version: '', runtime: '' };
    }
    let version = '';
    const print = await this.#docker.fingerprint(this.engine, async () => {
      ({ version } = await this.#api().info());
      return undefined;
    });
    return print.available ? { ...print, version } : print;
  }

  async list(): Promise<Seen[]> {
    if (!this.#installed()) return [];
    const all: Seen[] = [];
    for (const app of await this.#api().apps()) {
      const seen = await this.#see(app);
      if (this.#isOfThisHost(seen)) all.push(seen);
    }
    return all;
  }

  async find({ id }: MarathonHandle): Promise<Seen | undefined> {
    const app = await this.#api().app(id);
    return app === undefined ? undefined : await this.#see(app);
  }

  async #see(app: App): Promise<Seen> {
    const names = this.#names();
    const here = app.tasks.filter(({ host }) => names.includes(host.toLowerCase()));
    const [newest] = here.toSorted((left, right) => (right.stagedAt ?? '').localeCompare(left.stagedAt ?? ''));
    const task = here.find(({ state }) => state === RUNNING) ?? newest;
    const isDocker = byDocker(app);
    const inspect = task === undefined || !isDocker ? undefined : await this.#docker.labelled(TASK_LABEL, task.id);
    return {
      id: app.id,
      name: nameOf(app.id),
      image: app.container?.docker?.image ?? '',
      created_at: new Date(app.version).toISOString(),
      // What Mesos runs without Docker is not seen from here.
      state: !isDocker && task?.state === RUNNING ? 'running' : stateOf(inspect),
      inspect,
      app,
      task,
    };
  }

  /** One without instances is where its constraints say; without any that name a host it could come up anywhere. */
  #isOfThisHost({ app, task, inspect }: Seen): boolean {
    if (app.instances === 0 && task === undefined) {
      const names = this.#names();
      return app.constraints.some(
        ([field, operator = '', value = '']) =>
          field === 'hostname' && NAMING.includes(operator) && names.includes(value.toLowerCase()),
      );
    }
    // It runs by Docker, and this host's Docker does not have it: then another host has a name of this one's.
    if (byDocker(app) && task?.state === RUNNING && inspect === undefined) return false;
    return task !== undefined;
  }

  writeHandle({ id, name }: Seen): string {
    return writeHandle({ v: 1, engine: 'marathon', id, name });
  }

  refuse({ app, name }: Seen): Promise<void> {
    const why = whyNotMovable(app, name);
    return why === undefined ? Promise.resolve() : Promise.reject(why);
  }

  withoutMarks(specification: Specification): Specification {
    const labels = Object.entries(specification.labels).filter(([name]) => name !== TASK_LABEL);
    return {
      ...specification,
      labels: Object.fromEntries(labels),
      env: specification.env.filter((entry) => !OWN_ENV.test(entry)),
      mounts: specification.mounts.filter(({ kind, destination }) => !(kind === 'bind' && destination === OWN_MOUNT)),
    };
  }

  /**
   * Marathon has no precondition for a change. So nothing but the number of instances is sent, which is refused while another
   * change is under way; and afterwards it is looked whether there was one in between.
   */
  async begin({ app, name }: Seen): Promise<void> {
    if (app.instances === 1) return;
    const api = this.#api();
    const ours = await api.scale(app.id, 1);
    const between = (await api.versions(app.id)).filter((version) => app.version < version && version < ours);
    if (between.length === 0) return;
    throw new UmsError('UMS_E_ENGINE', {
      message: `Somebody else changed the app ${name} while it was being started (${between.join(', ')})`,
      fault: 'user',
      state: 'It is as they want it, with one instance.',
      mend: 'See how many instances they wanted, and give it as many.',
    });
  }

  async end({ app }: Seen): Promise<void> {
    if (app.instances !== 0) await this.#api().scale(app.id, 0);
  }

  async remove({ app }: Seen): Promise<void> {
    await this.#api().remove(app.id);
  }

  trouble({ app, task }: Seen): string {
    const failure = app.lastTaskFailure;
    if (failure !== undefined && failure !== null) return `${failure.state} ${failure.message}`.trim();
    const [other] = app.tasks;
    if (task === undefined && other !== undefined) return `it is on ${other.host} now`;
    return task === undefined ? 'no offer of Mesos fits it' : `its task is ${task.state}`;
  }
}

function byDocker({ container }: App): boolean {
  return container?.type === 'DOCKER';
}

/** Names of services have no slash, and those of Marathon's groups and apps no underscore. */
export function nameOf(id: string): string {
  return id.slice(1).replaceAll('/', '_');
}

export function idOf(name: string): string {
  return `/${name.replaceAll('_', '/')}`;
}

/** The host's name, whole and short, and its addresses; and the name that Mesos was told for it, if it was told another. */
export function ownNames(): string[] {
  const host = hostname();
  const addresses = Object.values(networkInterfaces())
    .flatMap((each) => each ?? [])
    .filter(({ internal }) => !internal)
    .map(({ address }) => address);
  const names = [ownHost(), host, host.split('.')[0] ?? host, ...addresses];
  return names.map((name) => name.toLowerCase());
}

export function whyNotMovable(app: App, name: string): UmsError | undefined {
  const { instances, tasks } = app;
  if (instances > 1) return notOne(name, `${instances} instances`, 'Scale it to one, or make an app for each of them.');
  if (tasks.length > 1) return notOne(name, `${tasks.length} tasks at this moment`, 'Wait until one is left.');
  if (byDocker(app)) return undefined;
  return new UmsError('UMS_E_SPECIFICATION', {
    message: `${name} runs without Docker (${app.container?.type ?? 'as a command'}), so ums does not find its container`,
    fault: 'user',
    state: 'Nothing was changed.',
    mend: 'Run it by the Docker containerizer ("container": {"type": "DOCKER"}), in a capsule (docs/container-level.md).',
  });
}

/** The one name by which Mesos knows this host. */
export function ownHost(): string {
  const told = process.env['UMS_MESOS_HOST'] ?? '';
  return told === '' ? hostname() : told;
}

export function createMarathonDriver(): Driver {
  return new SchedulerDriver(new MarathonScheduler());
}
