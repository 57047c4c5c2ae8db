import { UmsError } from '#src/telemetry/errors.ts';
import type { Driver, EngineFingerprint } from '../contract.ts';
import { type DockerHere, dockerHere } from '../scheduler/docker-here.ts';
import { notOne, SchedulerDriver, stateOf } from '../scheduler/index.ts';
import type { Scheduled, Scheduler, SchedulerWords } from '../scheduler/scheduled.ts';
import type { Specification } from '../specification.ts';
import { isInstalled } from './access.ts';
import { NomadApi } from './api.ts';
import { type NomadHandle, readHandle, writeHandle } from './handle.ts';
import type { Allocation, Job } from './schema.ts';

/**
 * Jobs of Nomad: those of type service with one task, which Nomad's docker driver runs on the node that this host is. Tested
 * against a contract that was written down (contract.fixtures.jsonl), not against a Nomad that runs.
 */
/** An allocation in one of these is or soon will be a container; of the last one Nomad has not heard for a while. */
const ALIVE = ['pending', 'running', 'unknown'];
/** What Nomad mounts into every task. */
const OWN_MOUNTS = ['/alloc', '/local', '/secrets'];
/** That a service can have elsewhere, too. */
const NAME = /^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}$/;

export const WORDS: SchedulerWords = {
  name: 'Nomad',
  instance: 'allocation',
  commands: {
    list: 'nomad job status',
    run: (name) => `Start it (nomad job start ${name})`,
    free: (name) => `nomad job stop -purge ${name}`,
  },
  look: (name) => `nomad job status ${name}`,
  why: 'Nomad makes each container of a job itself, and would make another one beside one that was restored.',
  mend: 'Run it in a capsule (ums capsule wrap): the service within moves (docs/container-level.md).',
};

/** The job, its allocation on this node, and those on others that are or soon will be containers. */
export interface Seen extends Scheduled {
  job: Job;
  allocation: Allocation | undefined;
  elsewhere: Allocation[];
}

export interface NomadOptions {
  docker?: DockerHere;
  api?: () => NomadApi;
  installed?: () => Promise<boolean>;
}

export class NomadScheduler implements Scheduler<Seen, NomadHandle> {
  readonly engine = 'nomad';
  readonly words = WORDS;
  readonly keepsContainers = false;
  readonly look_ms = 500;
  readonly readHandle = readHandle;
  readonly #docker: DockerHere;
  readonly #api: () => NomadApi;
  readonly #installed: () => Promise<boolean>;

  constructor({ docker = dockerHere, api = () => NomadApi.here(), installed = isInstalled }: NomadOptions = {}) {
    this.#docker = docker;
    this.#api = api;
    this.#installed = installed;
  }

  async fingerprint(): Promise<EngineFingerprint> {
    if (!(await this.#installed())) {
      const mend = 'Install it, or name its agent on this host by NOMAD_ADDR in the environment of the agent of ums';
      return { engine: this.engine, available: false, problem: 'Nomad is not here', mend, version: '', runtime: '' };
    }
    let version = '';
    const print = await this.#docker.fingerprint(this.engine, async () => {
      const { config, stats } = await this.#api().self();
      version = config.Version;
      if (stats.client !== undefined) return undefined;
      const problem = 'the agent of Nomad that answers is a server alone, and runs nothing';
      return { problem, mend: 'Name the agent that is a client on this host by NOMAD_ADDR' };
    });
    return print.available ? { ...print, version } : print;
  }

  async list(): Promise<Seen[]> {
    if (!(await this.#installed())) return [];
    const api = this.#api();
    const node = (await api.self()).stats.client?.node_id;
    if (node === undefined) return [];
    const all: Seen[] = [];
    for (const [id, allocations] of byJob(await api.allocationsOn(node), api.namespace)) {
      const job = await api.job({ id, namespace: api.namespace });
      // Allocations outlive a job that was purged.
      if (job === undefined) continue;
      // Where the last one has ended here, the job may live on another node by now.
      const known = allocations.some(isAlive) ? allocations : await api.allocationsOf(nameOf(job));
      if (theOne(known)?.NodeID !== node) continue;
      const seen = await this.#see(job, known, node);
      if (!isOfAnotherHost(seen)) all.push(seen);
    }
    return all;
  }

  async find({ id, namespace }: NomadHandle): Promise<Seen | undefined> {
    const api = this.#api();
    const name = { id, namespace };
    const [self, job] = await Promise.all([api.self(), api.job(name)]);
    if (job === undefined) return undefined;
    return await this.#see(job, await api.allocationsOf(name), self.stats.client?.node_id);
  }

  async #see(job: Job, allocations: readonly Allocation[], node: string | undefined): Promise<Seen> {
    const allocation = theOne(allocations.filter(({ NodeID }) => NodeID === node));
    const elsewhere = allocations.filter((each) => each.NodeID !== node && isAlive(each));
    const task = tasksOf(job)[0];
    const image = task?.Config?.['image'];
    const container =
      task?.Driver === 'docker' && allocation !== undefined
        ? `${task.Name.replaceAll('/', '_')}-${allocation.ID}`
        : undefined;
    const inspect = container === undefined ? undefined : await this.#docker.inspect(container);
    return {
      id: job.ID,
      name: job.ID,
      image: typeof image === 'string' ? image : '',
      created_at: new Date((job.SubmitTime ?? 0) / 1e6).toISOString(),
      // What another task driver runs is not seen from here.
      state: container === undefined && allocation?.ClientStatus === 'running' ? 'running' : stateOf(inspect),
      inspect,
      job,
      allocation,
      elsewhere,
    };
  }

  writeHandle({ id, name, job }: Seen): string {
    return writeHandle({ v: 1, engine: 'nomad', namespace: job.Namespace, id, name });
  }

  async refuse({ name, job }: Seen): Promise<void> {
    const why = whyNotMovable(job);
    if (why !== undefined) throw why;
    const alive = (await this.#api().allocationsOf(nameOf(job))).filter(isAlive);
    if (alive.length <= 1) return;
    throw notOne(name, `${alive.length} allocations`, `Wait until one is left (${WORDS.look(name)})`);
  }

  withoutMarks(specification: Specification): Specification {
    const labels = Object.entries(specification.labels).filter(([name]) => !name.startsWith('com.hashicorp.nomad.'));
    return {
      ...specification,
      labels: Object.fromEntries(labels),
      env: specification.env.filter((entry) => !entry.startsWith('NOMAD_')),
      mounts: specification.mounts.filter(
        ({ kind, destination }) => !(kind === 'bind' && OWN_MOUNTS.includes(destination)),
      ),
    };
  }

  async begin({ name, job, allocation, elsewhere }: Seen): Promise<void> {
    const api = this.#api();
    const isAliveHere = allocation !== undefined && isAlive(allocation);
    if (job.Stop !== true && (isAliveHere || elsewhere.length > 0)) return;
    const stopped = job.Stop === true ? job : await this.#stopped(job);
    if (stopped === undefined || stopped.Stop !== true) return;
    if (await api.register({ ...stopped, Stop: false }, stopped.JobModifyIndex)) return;
    throw new UmsError('UMS_E_ENGINE', {
      message: `Somebody else changed the job ${name} while it was to be started`,
      fault: 'user',
      state: 'It was left as they want it.',
      mend: `See what it is now (nomad job inspect ${name}), and start it again if that is wanted.`,
    });
  }

  /** For a job whose task has ended, and whose policies allow no other one, Nomad does nothing until it was stopped. */
  async #stopped(job: Job): Promise<Job | undefined> {
    const api = this.#api();
    await api.deregister(nameOf(job), false);
    return await api.job(nameOf(job));
  }

  async end({ job }: Seen): Promise<void> {
    if (job.Stop !== true) await this.#api().deregister(nameOf(job), false);
  }

  async remove({ job }: Seen): Promise<void> {
    await this.#api().deregister(nameOf(job), true);
  }

  trouble({ allocation, elsewhere }: Seen): string {
    const other = elsewhere[0];
    if (other !== undefined) return `it runs on the node ${other.NodeName === '' ? other.NodeID : other.NodeName} now`;
    if (allocation === undefined) return 'Nomad has not placed it on this node';
    const events = Object.values(allocation.TaskStates ?? {}).flatMap((task) => task.Events);
    const said = events.findLast((event) => event.DisplayMessage !== '')?.DisplayMessage;
    return said ?? allocation.ClientDescription ?? 'Nomad says nothing';
  }
}

function nameOf({ ID: id, Namespace: namespace }: Job): { id: string; namespace: string } {
  return { id, namespace };
}

function tasksOf({ TaskGroups: groups }: Job) {
  return (groups ?? []).flatMap(({ Tasks: tasks }) => tasks ?? []);
}

function byJob(allocations: readonly Allocation[], namespace: string): Map<string, Allocation[]> {
  const jobs = new Map<string, Allocation[]>();
  for (const allocation of allocations) {
    if (allocation.Namespace !== namespace) continue;
    jobs.set(allocation.JobID, [...(jobs.get(allocation.JobID) ?? []), allocation]);
  }
  return jobs;
}

function isAlive({ ClientStatus: status }: Allocation): boolean {
  return ALIVE.includes(status);
}

/** The one that counts: it is alive, or else it was the last. */
function theOne(allocations: readonly Allocation[]): Allocation | undefined {
  const sorted = allocations.toSorted((left, right) => right.CreateIndex - left.CreateIndex);
  return sorted.find(isAlive) ?? sorted[0];
}

/** It runs by Docker, and this host's Docker does not have it: then NOMAD_ADDR leads to the agent of another host. */
function isOfAnotherHost({ allocation, inspect, job }: Seen): boolean {
  return allocation?.ClientStatus === 'running' && tasksOf(job)[0]?.Driver === 'docker' && inspect === undefined;
}

/** What is known without asking again. */
export function whyNotMovable(job: Job): UmsError | undefined {
  const name = job.ID;
  const groups = job.TaskGroups ?? [];
  const tasks = tasksOf(job);
  const count = groups[0]?.Count ?? 0;
  const driver = tasks[0]?.Driver ?? '';
  if (!NAME.test(name)) return unmovable(`${name} is no name for a service elsewhere`, 'Give the job another.');
  if (job.Type !== 'service') {
    return unmovable(`${name} is a job of type ${job.Type}, and only one of type service can move`, 'Make it one.');
  }
  if (groups.length !== 1) return notOne(name, `${groups.length} task groups`, 'Make a job of each of them.');
  if (count !== 1) return notOne(name, `${count} allocations`, `Scale it to one (nomad job scale ${name} 1)`);
  if (tasks.length !== 1) return notOne(name, `${tasks.length} tasks`, 'Make a job of each of them.');
  if (driver === 'docker') return undefined;
  const mend = 'Run it by the docker driver, in a capsule (docs/container-level.md).';
  return unmovable(`${name} runs by the task driver ${driver}, whose containers ums does not find`, mend);
}

function unmovable(message: string, mend: string): UmsError {
  return new UmsError('UMS_E_SPECIFICATION', { message, fault: 'user', state: 'Nothing was changed.', mend });
}

export function createNomadDriver(): Driver {
  return new SchedulerDriver(new NomadScheduler());
}
