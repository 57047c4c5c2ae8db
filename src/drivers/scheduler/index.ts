import { UmsError } from '#src/telemetry/errors.ts';
import type {
  AfterCheckpoint,
  CreatedService,
  Driver,
  EngineFingerprint,
  EngineName,
  Finding,
  ServiceDescription,
  ServiceState,
  ServiceSummary,
} from '../contract.ts';
import { addressOf } from '../docker/surroundings.ts';
import { freezerOf, poll, processesOf } from '../oci/cgroup.ts';
import { findingOf } from '../oci/findings.ts';
import { ServiceErrors } from '../oci/service-errors.ts';
import type { Specification } from '../specification.ts';
import { bareSpecification } from './bare.ts';
import { type DockerHere, dockerHere } from './docker-here.ts';
import type { Scheduled, Scheduler } from './scheduled.ts';

/**
 * Services of a scheduler, as far as they are capsules: a scheduler makes every container of a service itself, so one that was
 * restored could not take a place in it. What moves is the service within the capsule; this driver finds, starts, stops
 * and removes the scheduler's service around it, if that has one instance, which runs here. What differs between schedulers
 * is in `Scheduler`. Their instances are containers of Docker's on this host.
 */
export interface Limits {
  start_ms: number;
  end_ms: number;
}
const LIMITS: Limits = { start_ms: 120_000, end_ms: 60_000 };

export class SchedulerDriver<Seen extends Scheduled, Handle extends { name: string }> implements Driver {
  readonly engine: EngineName;
  readonly whyNotLazy: string;
  readonly #scheduler: Scheduler<Seen, Handle>;
  readonly #docker: DockerHere;
  readonly #limits: Limits;
  readonly #errors: ServiceErrors;

  constructor(scheduler: Scheduler<Seen, Handle>, docker: DockerHere = dockerHere, limits: Limits = LIMITS) {
    this.engine = scheduler.engine;
    this.whyNotLazy = scheduler.words.why;
    this.#scheduler = scheduler;
    this.#docker = docker;
    this.#limits = limits;
    this.#errors = new ServiceErrors(scheduler.words.name, scheduler.words.commands);
  }

  fingerprint(): Promise<EngineFingerprint> {
    return this.#scheduler.fingerprint();
  }

  async list(): Promise<ServiceSummary[]> {
    return (await this.#scheduler.list()).map((seen) => this.#summaryOf(seen));
  }

  async describe(reference: string): Promise<ServiceDescription> {
    const all = await this.#scheduler.list();
    const { id } = this.#errors.find(
      reference,
      all.map((seen) => this.#summaryOf(seen)),
    );
    const seen = all.find((each) => each.id === id);
    if (seen === undefined) throw this.#errors.unknown(reference);
    await this.#scheduler.refuse(seen);
    return {
      summary: this.#summaryOf(seen),
      specification: await this.#specificationOf(seen),
      handle: this.#scheduler.writeHandle(seen),
      trees: [],
      losses: [],
    };
  }

  async #specificationOf(seen: Seen): Promise<Specification> {
    const { name, inspect, image } = seen;
    if (inspect !== undefined) {
      const specification = await this.#docker.specify(inspect, name);
      return this.#scheduler.withoutMarks({ ...specification, engine: this.engine });
    }
    if (this.#scheduler.keepsContainers) throw this.#errors.notRunning(name, 'stopped');
    return bareSpecification(this.engine, name, (await this.#docker.image(image)) ?? { kind: 'rootfs' });
  }

  async state(handle: string): Promise<ServiceState> {
    return (await this.#find(handle))?.state ?? 'absent';
  }

  async processes(handle: string): Promise<number[]> {
    const pid = (await this.#find(handle))?.inspect?.State.Pid ?? 0;
    const freezer = pid === 0 ? undefined : await freezerOf(pid);
    return freezer === undefined ? [] : await processesOf(freezer);
  }

  async address(handle: string): Promise<string | undefined> {
    const inspect = (await this.#find(handle))?.inspect;
    return inspect === undefined ? undefined : addressOf(inspect);
  }

  canCreate({ name }: Specification): Promise<Finding[]> {
    const { name: scheduler, why, mend } = this.#scheduler.words;
    const what = `${name} cannot be made a service of ${scheduler} with what it is at this moment.`;
    return Promise.resolve([findingOf('error', 'approach.orchestrator-level', what, why, mend)]);
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

  readonly #refused = (): Promise<never> => {
    const { name, why, mend } = this.#scheduler.words;
    return Promise.reject(
      new UmsError('UMS_E_APPROACH', {
        message: `A container of ${name}’s is neither dumped nor restored by ums.`,
        fault: 'user',
        state: 'Nothing was changed.',
        mend,
        detail: why,
      }),
    );
  };

  exportImage = this.#refused;
  importImage = this.#refused;
  create = this.#refused;
  freeze = this.#refused;
  prepareCheckpoint = this.#refused;
  checkpoint = this.#refused;
  prepareRestore = this.#refused;
  restore = this.#refused;
  resume = this.#refused;
  startFresh = this.#refused;
  restartFresh = this.#refused;

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
    const seen = await this.#find(handle);
    if (seen === undefined) return;
    await this.#scheduler.remove(seen);
    await this.#untilEnded(seen);
  }

  /** The scheduler keeps the service without an instance, and makes none by itself. */
  async discard(handle: string): Promise<void> {
    const seen = await this.#find(handle);
    if (seen === undefined) return;
    await this.#scheduler.end(seen);
    await this.#untilEnded(seen);
  }

  adopt(): Promise<void> {
    return Promise.resolve();
  }

  settle(): Promise<void> {
    return Promise.resolve();
  }

  async stop(handle: string): Promise<void> {
    if ((await this.#find(handle)) === undefined) throw this.#gone(handle);
    await this.discard(handle);
  }

  async start(handle: string): Promise<void> {
    const seen = await this.#find(handle);
    if (seen === undefined) throw this.#gone(handle);
    await this.#scheduler.begin(seen);
    if (await this.#poll(async () => (await this.state(handle)) === 'running', this.#limits.start_ms)) return;
    const { name: scheduler, look } = this.#scheduler.words;
    const now = await this.#find(handle);
    throw new UmsError('UMS_E_ENGINE', {
      message: `${seen.name} did not start: ${now === undefined ? `${scheduler} says nothing` : this.#scheduler.trouble(now)}`,
      fault: 'service',
      mend: look(seen.name),
    });
  }

  #find(handle: string): Promise<Seen | undefined> {
    return this.#scheduler.find(this.#scheduler.readHandle(handle));
  }

  #gone(handle: string): UmsError {
    return this.#errors.gone(this.#scheduler.readHandle(handle).name);
  }

  #summaryOf({ id, name, state, image, inspect, created_at }: Seen): ServiceSummary {
    return { engine: this.engine, id, name, state, image, pid: inspect?.State.Pid ?? 0, ports: [], created_at };
  }

  async #untilEnded({ name, inspect }: Seen): Promise<void> {
    if (inspect === undefined) return;
    const ended = async () => ((await this.#docker.inspect(inspect.Id))?.State.Pid ?? 0) === 0;
    if (await this.#poll(ended, this.#limits.end_ms)) return;
    const { instance, look } = this.#scheduler.words;
    throw new UmsError('UMS_E_ENGINE', {
      message: `The ${instance} of ${name} has not ended within ${this.#limits.end_ms} ms`,
      fault: 'source',
      mend: look(name),
    });
  }

  #poll(condition: () => Promise<boolean>, limit_ms: number): Promise<boolean> {
    return poll(condition, limit_ms, this.#scheduler.look_ms);
  }
}

/** The container that Docker has runs; what else a scheduler may say of its instance is not seen from here. */
export function stateOf(inspect: Scheduled['inspect']): Scheduled['state'] {
  return inspect !== undefined && inspect.State.Pid > 0 ? 'running' : 'stopped';
}

/** There is one service within a capsule: of several instances it could not be said which moves. */
export function notOne(name: string, what: string, mend: string): UmsError {
  return new UmsError('UMS_E_SPECIFICATION', {
    message: `${name} has ${what}, and only a service of one can move`,
    fault: 'user',
    state: 'Nothing was changed.',
    mend,
  });
}
