import { mkdirSync } from 'node:fs';
import { criuVersion } from '#src/checkpoint/criu.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import type {
  AfterCheckpoint,
  CheckpointRequest,
  CreatedService,
  Driver,
  DriverOptions,
  EngineFingerprint,
  Finding,
  RestoreRequest,
  ServiceDescription,
  ServiceState,
  ServiceSummary,
} from '../contract.ts';
import { handleReader } from '../handles.ts';
import { refuseLazy } from '../oci/service-errors.ts';
import type { Specification } from '../specification.ts';
import { boundOf, grantFindings, groupFindings, groupsOf } from './capabilities.ts';
import { dump, readDescriptors, restore, stdioOf } from './criu.ts';
import {
  abilityProblem,
  ownStdio,
  readMigratable,
  specificationOf,
  stdioFindings,
  summaryOf,
  treesOf,
} from './describe.ts';
import { ask, seenBy, seenIdle } from './door.ts';
import type { Migratable } from './layout.ts';
import { Marks } from './marks.ts';
import { allStandStill, exists, family, signalAll, stopAll, stoppedAlready, threadIds, until } from './processes.ts';
import { type Descriptors, handleSchema, type InitHandle } from './schema.ts';

const STOP_LIMIT_MS = 10_000;
const KILL_LIMIT_MS = 20_000;
const CRIU_LIMIT_MS = 60_000;

const readHandle = handleReader<InitHandle>('the init of a migratable image', handleSchema);

/**
 * The service of the container in which the agent itself runs. Its engine is the container's first process, init.pl. It
 * needs nothing of the host's engine, which sees a container that runs all the time, on either side; so there is nothing to
 * make or remove but processes. They are held by SIGSTOP: a container has no freezer of its own to write to.
 */
export class InitDriver implements Driver {
  readonly engine = 'init';
  /** A dump here is always a whole one, and so is a restore, also where the container happens to be granted more. */
  readonly whyNotLazy = 'within its own container a service is dumped and restored as a whole';
  readonly #runDir: string;
  readonly #marks: Marks;
  readonly #image: Migratable;

  constructor(options: DriverOptions, image: Migratable) {
    this.#runDir = options.runDir;
    this.#image = image;
    this.#marks = new Marks(options.runDir, options.stateDir);
    mkdirSync(options.runDir, { recursive: true, mode: 0o700 });
  }

  async fingerprint(): Promise<EngineFingerprint> {
    const version = (await criuVersion()) ?? '';
    const base = { engine: this.engine, version: '1', runtime: `criu ${version}` } as const;
    const lacks = abilityProblem();
    return lacks === undefined ? { ...base, available: true } : { ...base, available: false, ...lacks };
  }

  async list(): Promise<ServiceSummary[]> {
    const state = await this.#state();
    if (state === 'absent') return [];
    return [summaryOf(this.#image, state, (await seenBy(this.#runDir)).pid)];
  }

  async describe(reference: string): Promise<ServiceDescription> {
    const [summary] = await this.list();
    if (summary === undefined || reference === '' || !summary.name.startsWith(reference)) {
      throw new UmsError('UMS_E_SERVICE_UNKNOWN', {
        message: `This container has no service ${reference}`,
        fault: 'user',
        mend: 'See `ums ls` for what runs here.',
      });
    }
    const [terminal] = stdioFindings(summary.pid === 0 ? [] : stdioOf(summary.pid));
    if (terminal !== undefined) {
      throw new UmsError('UMS_E_SPECIFICATION', { message: terminal.what, fault: 'user', mend: terminal.mend });
    }
    const handle: InitHandle = { v: 1, engine: 'init', name: this.#image.name };
    return {
      summary,
      specification: specificationOf(this.#image, summary.pid),
      handle: JSON.stringify(handle),
      trees: treesOf(this.#image),
      losses: [
        'established connections are closed: keeping them takes CAP_NET_ADMIN',
        `files outside of ${['/dev/shm', ...this.#image.files].join(', ')} stay as the destination's container has them`,
      ],
    };
  }

  state(handle: string): Promise<ServiceState> {
    readHandle(handle);
    return this.#state();
  }

  async #state(): Promise<ServiceState> {
    const { pid, place } = await seenBy(this.#runDir);
    const pids = family(pid);
    if (pids.length === 0) {
      if (this.#marks.created() !== undefined) return 'created';
      // The container has ended since the freeze. The init has begun nothing anew, because that is not its to decide.
      return place === 'held' ? 'stopped' : 'absent';
    }
    const mark = this.#marks.frozen();
    if (mark === undefined || !allStandStill(pids)) return 'running';
    return mark.how;
  }

  async processes(handle: string): Promise<number[]> {
    readHandle(handle);
    return family((await seenBy(this.#runDir)).pid);
  }

  /** It shares the network of the agent. */
  address(handle: string): Promise<string | undefined> {
    readHandle(handle);
    return Promise.resolve('127.0.0.1');
  }

  async canCreate(specification: Specification): Promise<Finding[]> {
    const findings = [
      ...stdioFindings(ownStdio()),
      ...grantFindings(specification.capabilities.add, boundOf(1)),
      ...groupFindings(specification.groups, groupsOf(1)),
    ];
    const state = await this.#state();
    if (state !== 'absent') {
      findings.push({
        severity: 'error',
        id: 'name.taken',
        what: `The destination's container has a service already, which is ${state}.`,
        why: 'A container has room for one service.',
        mend: 'Start the destination with UMS_INIT=wait, so that it waits for a service.',
      });
    }
    const lacks = abilityProblem();
    if (lacks !== undefined) {
      findings.push({
        severity: 'error',
        id: 'engine.ability',
        what: `The destination cannot receive a service: ${lacks.problem}.`,
        why: 'CRIU restores the processes within the container.',
        mend: lacks.mend,
      });
    }
    if (specification.image.kind !== 'image' || specification.image.id !== this.#image.id) {
      findings.push({
        severity: 'error',
        id: 'engine.image',
        what: "The destination's container was made of another image.",
        why: 'Only the processes move: their programs and libraries must be there already, the same to the byte.',
        mend: 'Start the destination from the image that the source was started from.',
      });
    }
    return findings;
  }

  hasImage({ image }: Specification): Promise<boolean> {
    return Promise.resolve(image.kind === 'image' && image.id === this.#image.id);
  }

  imageLayers(): Promise<string[]> {
    return Promise.resolve([]);
  }

  exportImage(): Promise<void> {
    return Promise.reject(imagesStay());
  }

  importImage(): Promise<void> {
    return Promise.reject(imagesStay());
  }

  async create(_: Specification, key: string): Promise<CreatedService> {
    const made = this.#marks.created();
    if (made === key) return this.#createdService(key);
    if (made !== undefined || (await seenBy(this.#runDir)).pid !== 0) {
      throw new UmsError('UMS_E_NAME_TAKEN', {
        message: 'This container has a service already, or waits for another',
        fault: 'destination',
        state: 'It was left as it is.',
        mend: 'Start another container with UMS_INIT=wait.',
      });
    }
    await this.#marks.setCreated(key);
    return this.#createdService(key);
  }

  #createdService(key: string): CreatedService {
    const handle: InitHandle = { v: 1, engine: 'init', name: this.#image.name, key };
    return { handle: JSON.stringify(handle), id: this.#image.name, trees: treesOf(this.#image) };
  }

  findCreated(_: Specification, key: string): Promise<CreatedService | undefined> {
    return Promise.resolve(this.#marks.created() === key ? this.#createdService(key) : undefined);
  }

  async freeze(handle: string): Promise<void> {
    const state = await this.state(handle);
    if (state === 'frozen') return;
    if (state !== 'running') throw notRunning(this.#image.name, state);
    const { pid } = await seenBy(this.#runDir);
    // One that was interrupted has stopped some already; those are not the service's own doing.
    const mark = this.#marks.frozen() ?? { v: 1, how: 'frozen', stopped: stoppedAlready(family(pid)) };
    this.#marks.setFrozen(mark);
    // Should the container end while its service may be elsewhere, it must not begin anew by itself.
    await ask(this.#runDir, ['place', 'held']);
    await stopAll(pid, mark.stopped, STOP_LIMIT_MS);
  }

  async thaw(handle: string): Promise<void> {
    const state = await this.state(handle);
    if (state !== 'running' && state !== 'frozen') throw notRunning(this.#image.name, state);
    await ask(this.#runDir, ['place', 'here']);
    await this.#letGo();
  }

  /** Also when it seems to run: a freeze that was interrupted has stopped a part of it. */
  async #letGo(): Promise<void> {
    const mark = this.#marks.frozen();
    if (mark === undefined) return;
    // A dump that outlived the agent leaves them stopped at its end.
    const { pid: root } = await seenIdle(this.#runDir, CRIU_LIMIT_MS);
    // Children first: a parent that waits for stopped children (WUNTRACED) then finds none.
    const pids = family(root).toReversed();
    signalAll(
      pids.filter((pid) => !mark.stopped.includes(pid)),
      'SIGCONT',
    );
    this.#marks.setFrozen(undefined);
  }

  /** CRIU is a process of its own here, without an engine before it that would take its time. */
  prepareCheckpoint(): Promise<void> {
    return Promise.resolve();
  }

  descriptors(): Promise<string | undefined> {
    return Promise.resolve(undefined);
  }

  async checkpoint(handle: string, request: CheckpointRequest): Promise<void> {
    refuseLazy(this, request);
    const state = await this.state(handle);
    if (state !== 'frozen') throw notRunning(this.#image.name, state);
    const { pid } = await seenBy(this.#runDir);
    const pids = family(pid);
    const stopped = this.#marks.frozen()?.stopped ?? [];
    const known: Descriptors = { v: 1, stdio: stdioOf(pid), pid, ids: threadIds(pids), stopped };
    const directories = treesOf(this.#image).map(({ path }) => path);
    await dump(this.#runDir, known, directories, request);
  }

  afterCheckpoint(): AfterCheckpoint {
    return { ended: Promise.resolve(), holds: Promise.resolve() };
  }

  prepareRestore(): Promise<void> {
    return Promise.resolve();
  }

  async restore(handle: string, request: RestoreRequest): Promise<void> {
    refuseLazy(this, request);
    const state = await this.state(handle);
    if (state === 'restored') return;
    if (state !== 'created') throw notRunning(this.#image.name, state);
    const known = await readDescriptors(request.imagesDir);
    const { pid, stopped } = known;
    // Before there are processes, so that an agent that is killed meanwhile finds them restored, and not running.
    this.#marks.setFrozen({ v: 1, how: 'restored', stopped });
    await restore(this.#runDir, known, request);
    if (await until(() => allStandStill(family(pid)), STOP_LIMIT_MS)) return;
    await this.#end();
    throw new UmsError('UMS_E_RESTORE', {
      message: 'the restored processes did not stand still, and were ended',
      fault: 'destination',
    });
  }

  async resume(handle: string): Promise<void> {
    const state = await this.state(handle);
    if (state !== 'running' && state !== 'restored') throw notRunning(this.#image.name, state);
    await this.#letGo();
  }

  /** There is no control group to write to. */
  throttle(): Promise<boolean> {
    return Promise.resolve(false);
  }

  async remove(handle: string): Promise<void> {
    const { key } = readHandle(handle);
    const made = this.#marks.created();
    // A container that waits for another migration by now, or has another's service, is none of this one's business.
    if (key !== undefined && made !== key) return;
    await this.#end();
    this.#marks.dropCreated();
  }

  /** Ends every process without one more instruction of theirs: the kernel kills stopped processes where they stand. */
  async #end(): Promise<void> {
    // Whatever becomes of this container, the service is none of its own from now on.
    await ask(this.#runDir, ['place', 'away']);
    // A restore that outlived the agent would bring it about after this has found none.
    const { pid: root } = await seenIdle(this.#runDir, CRIU_LIMIT_MS);
    const pids = family(root);
    await ask(this.#runDir, ['release']);
    // The first process last: as long as it is there the others are found by it, also after a kill of the agent.
    signalAll(pids.toReversed(), 'SIGKILL');
    if (!(await until(() => pids.every((pid) => !exists(pid)), KILL_LIMIT_MS))) {
      throw new UmsError('UMS_E_TIMEOUT', { message: 'The service does not end', fault: 'service' });
    }
    this.#marks.setFrozen(undefined);
  }

  async discard(handle: string): Promise<void> {
    readHandle(handle);
    await this.#end();
  }

  async adopt(handle: string): Promise<void> {
    readHandle(handle);
    await ask(this.#runDir, ['place', 'here']);
  }

  async settle(handle: string): Promise<void> {
    const { key } = readHandle(handle);
    await ask(this.#runDir, ['place', 'here']);
    if (key !== undefined && this.#marks.created() === key) this.#marks.dropCreated();
  }

  async startFresh(handle: string): Promise<void> {
    await this.start(handle);
  }

  async restartFresh(handle: string): Promise<void> {
    readHandle(handle);
    await this.#end();
    await this.start(handle);
  }

  async stop(handle: string): Promise<void> {
    const state = await this.state(handle);
    if (state !== 'running') return;
    process.kill((await seenBy(this.#runDir)).pid, 'SIGTERM');
  }

  async start(handle: string): Promise<void> {
    const state = await this.state(handle);
    if (state === 'running') return;
    await ask(this.#runDir, ['place', 'here']);
    await ask(this.#runDir, ['start']);
  }
}

function notRunning(name: string, state: ServiceState): UmsError {
  return new UmsError(state === 'absent' ? 'UMS_E_SERVICE_GONE' : 'UMS_E_SERVICE_NOT_RUNNING', {
    message: `${name} is ${state}, so this cannot be done with it`,
    fault: 'service',
    mend: 'See `ums ls` in its container.',
  });
}

function imagesStay(): UmsError {
  return new UmsError('UMS_E_SPECIFICATION', {
    message: 'The image of a container cannot be given or taken from within',
    fault: 'user',
    mend: 'Start both containers from the same image.',
  });
}

/** Undefined where this is no container of a migratable image. */
export function createInitDriver(options: DriverOptions): Driver | undefined {
  const image = readMigratable();
  return image === undefined ? undefined : new InitDriver(options, image);
}
