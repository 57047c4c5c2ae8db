import { UmsError } from '#src/telemetry/errors.ts';
import type {
  AfterCheckpoint,
  CheckpointRequest,
  CreatedService,
  Driver,
  DriverOptions,
  EngineFingerprint,
  Finding,
  RemoveOptions,
  RestoreRequest,
  ServiceDescription,
  ServiceState,
  ServiceSummary,
} from '../contract.ts';
import { freezerOf, isFrozen, poll, processesOf, setFrozen, waitUntilUntraced } from '../oci/cgroup.ts';
import { afterDump, dumpFrozen, giveUpDump, prepareDump, waitForDumps } from '../oci/dump.ts';
import { EngineRestore } from '../oci/engine-restore.ts';
import { killFrozen } from '../oci/frozen.ts';
import { saveLog } from '../oci/log-file.ts';
import { CreateRecords } from '../oci/records.ts';
import { RestoreArea } from '../oci/restore-area.ts';
import { descriptorsOf, initPid } from '../oci/runtime.ts';
import { sweepRuntimeLinks, unlinkRuntime } from '../oci/runtime-links.ts';
import { freezerSeen, stateSeen } from '../oci/seen.ts';
import { ServiceErrors } from '../oci/service-errors.ts';
import { Throttle } from '../oci/throttle.ts';
import type { Specification } from '../specification.ts';
import {
  forbidRestart,
  info,
  inspectContainer,
  isInstalled,
  listContainers,
  removeContainer,
  removeVolume,
  startContainer,
  stopContainer,
} from './api.ts';
import { canCreate } from './can-create.ts';
import {
  createContainer,
  type CreateRecord,
  createRecordSchema,
  findContainer,
  keyOfTemporary,
  sourceTrees,
  undoRecord,
} from './create.ts';
import { nameOf, specificationOf } from './describe.ts';
import { type DockerHandle, readHandle, writeHandle } from './handle.ts';
import { dockerFingerprint } from './fingerprint.ts';
import { describeImage, exportImage, hasImage, imageLayers, importImage } from './images.ts';
import { hold, holdForGood, release } from './hold.ts';
import { lossesOf, refuseUnmovable } from './losses.ts';
import { logOfContainer, startOf } from './restore.ts';
import type { Inspect } from './schema.ts';
import { addressOf, handleOf, runtimeRoot, volumesOf } from './surroundings.ts';

/** Milliseconds for CRIU to let go of tasks after its page server went away. */
const UNTRACED_LIMIT_MS = 60_000;
const FREEZE_LIMIT_MS = 10_000;
const THAW_LIMIT_MS = 5000;
const START_LIMIT_MS = 30_000;
const END_LIMIT_MS = 30_000;
/** What Docker gives a service to end by itself, unless the service says otherwise, and what is added for Docker. */
const STOP_LIMIT_S = 10;
const STOP_MORE_S = 60;
const KNOWN_MAX = 64;
/** So long after its creation a container that no record knows is nobody's. */
const UNFINISHED_LIMIT_MS = 10 * 60_000;

const errors = new ServiceErrors('Docker', 'docker');

/** What is known of a container, asked shortly before it is needed, while a service stands still. */
interface Known {
  inspect: Inspect;
  dockerRoot: string;
}

export class DockerDriver implements Driver {
  readonly engine = 'docker';
  readonly #area: RestoreArea;
  readonly #restores: EngineRestore;
  readonly #throttle: Throttle;
  readonly #records: CreateRecords<CreateRecord>;
  readonly #known = new Map<string, Known>();

  constructor(options: DriverOptions) {
    this.#area = new RestoreArea(options.runDir);
    this.#restores = new EngineRestore(this.#area);
    this.#throttle = new Throttle(options.runDir);
    this.#records = new CreateRecords(options.stateDir, 'docker', createRecordSchema);
  }

  fingerprint(): Promise<EngineFingerprint> {
    const noRuntime = { problem: 'runc is not installed', mend: 'apt install runc' };
    return dockerFingerprint(this.engine, (runtime) => Promise.resolve(runtime === undefined ? noRuntime : undefined));
  }

  async list(): Promise<ServiceSummary[]> {
    if (!isInstalled()) return [];
    const containers = await listContainers();
    await sweepRuntimeLinks();
    const summaries: ServiceSummary[] = [];
    for (const container of containers) {
      const name = container.Names.map((each) => each.slice(1)).find((each) => !each.includes('/')) ?? container.Id;
      const inspect = await inspectContainer(container.Id);
      if (inspect === undefined || (await this.#isUnfinished(inspect))) continue;
      summaries.push({
        engine: this.engine,
        id: container.Id,
        name,
        state: await this.#stateOf(inspect),
        image: container.Image,
        pid: inspect.State.Pid,
        ports: container.Ports.flatMap(({ IP: ip, PublicPort: host, PrivatePort: port, Type: type }) =>
          host === undefined ? [] : [`${ip === '' ? '0.0.0.0' : ip}:${host}->${port}/${type}`],
        ),
        created_at: new Date(container.Created * 1000).toISOString(),
      });
    }
    return summaries;
  }

  /**
   * A container that is being made. One that Docker made for an agent which had gone meanwhile has no record any more: it is
   * removed when nobody can be at work on it.
   */
  async #isUnfinished(inspect: Inspect): Promise<boolean> {
    const key = keyOfTemporary(nameOf(inspect));
    if (key === undefined || inspect.State.Status !== 'created') return false;
    const isOld = Date.now() - Date.parse(inspect.Created) > UNFINISHED_LIMIT_MS;
    if (isOld && (await this.#records.read(key)) === undefined) await removeContainer(inspect.Id);
    return true;
  }

  async describe(reference: string): Promise<ServiceDescription> {
    const summary = errors.find(reference, await this.list());
    const inspect = await inspectContainer(summary.id);
    if (inspect === undefined) throw errors.unknown(reference);
    refuseUnmovable(inspect, (await info()).SecurityOptions);
    const [image, volumes] = await Promise.all([describeImage(inspect), volumesOf(inspect)]);
    return {
      summary,
      specification: specificationOf(inspect, image, volumes),
      handle: writeHandle(handleOf(inspect)),
      trees: sourceTrees(inspect),
      losses: lossesOf(inspect, volumes),
    };
  }

  async state(handle: string): Promise<ServiceState> {
    const container = readHandle(handle);
    const seen = await stateSeen(this.#area, container);
    if (seen !== undefined) return seen;
    // Docker would answer only when the restore that waits for its images has ended.
    if (await this.#restores.waits(container.id)) return 'created';
    const inspect = await inspectContainer(container.id);
    return inspect === undefined ? 'absent' : await this.#stateOf(inspect);
  }

  /** Docker's word for where the container is in its life, the kernel's for whether its processes run. */
  async #stateOf(inspect: Inspect): Promise<ServiceState> {
    const { Status: status, Pid: pid } = inspect.State;
    const seen = await stateSeen(this.#area, { root: runtimeRoot(inspect), id: inspect.Id });
    if (seen !== undefined) return seen;
    if (status === 'created') return 'created';
    const freezer = pid > 0 ? await freezerOf(pid) : undefined;
    if (freezer === undefined) return 'stopped';
    return (await isFrozen(freezer)) ? 'frozen' : 'running';
  }

  async processes(handle: string): Promise<number[]> {
    const freezer = await freezerSeen(readHandle(handle));
    return freezer === undefined ? [] : await processesOf(freezer);
  }

  async address(handle: string): Promise<string | undefined> {
    const inspect = await inspectContainer(readHandle(handle).id);
    return inspect === undefined ? undefined : addressOf(inspect);
  }

  canCreate(specification: Specification): Promise<Finding[]> {
    return canCreate(specification);
  }

  hasImage(specification: Specification): Promise<boolean> {
    return hasImage(specification);
  }

  imageLayers(): Promise<string[]> {
    return imageLayers();
  }

  exportImage(
    specification: Specification,
    sink: NodeJS.WritableStream,
    signal: AbortSignal,
    known: readonly string[] = [],
  ): Promise<void> {
    return exportImage(specification, sink, signal, known);
  }

  importImage(specification: Specification, source: NodeJS.ReadableStream, signal: AbortSignal): Promise<void> {
    return importImage(specification, source, signal);
  }

  async create(specification: Specification, key: string): Promise<CreatedService> {
    const created = await createContainer(this.#records, specification, key);
    await this.#remember(created.id);
    return created;
  }

  findCreated(specification: Specification, key: string): Promise<CreatedService | undefined> {
    return findContainer(this.#records, specification, key);
  }

  /**
   * Docker is not told that it is frozen, or it would let it go on in order to stop it, and then there could be two. It is
   * kept from starting it.
   */
  async freeze(handle: string): Promise<void> {
    const container = readHandle(handle);
    const state = await this.state(handle);
    if (state === 'frozen') return await this.#hold(container);
    if (state === 'absent') throw errors.gone(container.name);
    if (state !== 'running') throw errors.notRunning(container.name, state);
    const freezer = await freezerSeen(container);
    if (freezer === undefined || !(await setFrozen(freezer, true, FREEZE_LIMIT_MS))) {
      throw new UmsError('UMS_E_ENGINE', { message: `${container.name} could not be frozen`, fault: 'source' });
    }
    await this.#hold(container);
  }

  /** One that has arrived and only waits for its memory goes on by `resume`, and is the one copy. */
  async #hold({ id, hostname }: DockerHandle): Promise<void> {
    if (!(await this.#area.exists(id))) await hold(hostname);
  }

  async thaw(handle: string): Promise<void> {
    const container = readHandle(handle);
    await waitForDumps(container.id, UNTRACED_LIMIT_MS);
    await this.#throttle.set(container.id, [], undefined);
    await release(container.hostname);
    const freezer = await freezerSeen(container);
    if (freezer !== undefined && (await isFrozen(freezer)) && !(await this.#area.exists(container.id))) {
      await waitUntilUntraced(await processesOf(freezer), UNTRACED_LIMIT_MS);
      await setFrozen(freezer, false, THAW_LIMIT_MS);
    }
    await this.#require(handle, 'running');
  }

  async prepareCheckpoint(handle: string, request: CheckpointRequest): Promise<void> {
    const container = readHandle(handle);
    await this.#require(handle, 'running', 'frozen');
    await this.#remember(container.id);
    await prepareDump(container, request, await this.processes(handle));
  }

  descriptors(handle: string): Promise<string | undefined> {
    const { root, id } = readHandle(handle);
    return descriptorsOf(root, id);
  }

  async checkpoint(handle: string, request: CheckpointRequest): Promise<void> {
    const container = readHandle(handle);
    await this.#require(handle, 'frozen');
    await this.#throttle.set(container.id, [], undefined);
    const pids = await this.processes(handle);
    // Both wait for others, and the service stands still meanwhile.
    const [dumped, saved] = await Promise.allSettled([
      dumpFrozen(container, request, pids),
      this.#saveLog(container.id, request.imagesDir),
    ]);
    if (dumped.status === 'rejected') throw dumped.reason;
    if (saved.status === 'rejected') throw saved.reason;
  }

  async #saveLog(id: string, imagesDir: string): Promise<void> {
    const known = await this.#recall(id);
    const log = known === undefined ? undefined : logOfContainer(known.inspect, known.dockerRoot);
    if (log !== undefined) await saveLog(log, imagesDir);
  }

  afterCheckpoint(handle: string): AfterCheckpoint {
    const { id, hostname } = readHandle(handle);
    const { ended, holds } = afterDump(id);
    // After the commit dockerd must not start it, even after a power cut; until then the disk may take its time.
    const all = Promise.all([holds, holdForGood(hostname)]).then(() => undefined);
    // It is awaited when the destination has answered.
    all.catch(() => undefined);
    return { ended, holds: all };
  }

  async #remember(id: string): Promise<Known | undefined> {
    const inspect = await inspectContainer(id);
    if (inspect === undefined) return undefined;
    if (this.#known.size >= KNOWN_MAX) this.#known.clear();
    const known = { inspect, dockerRoot: (await info()).DockerRootDir };
    this.#known.set(id, known);
    return known;
  }

  /** What Docker said before will do: of what is asked here nothing changes but by its removal. */
  async #recall(id: string): Promise<Known | undefined> {
    const known = this.#known.get(id);
    this.#known.delete(id);
    return known ?? (await this.#remember(id));
  }

  async prepareRestore(handle: string, request: RestoreRequest): Promise<void> {
    const container = readHandle(handle);
    if (await this.#restores.isPrepared(container.id, request)) return;
    await this.#restores.giveUp(container.id);
    await this.#require(handle, 'created');
    const known = await this.#remember(container.id);
    // Docker removes what shall go when it ends also when it does not start, so there is one try.
    if (known === undefined || known.inspect.HostConfig.AutoRemove) return;
    await this.#restores.prepare(startOf(this.#area, known.inspect, container, known.dockerRoot), request);
  }

  async restore(handle: string, request: RestoreRequest): Promise<void> {
    const container = readHandle(handle);
    if ((await initPid(container.root, container.id)) !== undefined) {
      const state = await this.#require(handle, 'created', 'restored');
      if (state === 'restored') return;
    }
    const known = await this.#recall(container.id);
    if (known === undefined) throw errors.gone(container.name);
    await this.#restores.run(startOf(this.#area, known.inspect, container, known.dockerRoot), request);
  }

  async resume(handle: string): Promise<void> {
    const container = readHandle(handle);
    if ((await stateSeen(this.#area, container)) !== 'restored') {
      const state = await this.#require(handle, 'running', 'restored');
      if (state === 'running') return;
    }
    const freezer = await freezerSeen(container);
    if (freezer !== undefined && (await setFrozen(freezer, false, THAW_LIMIT_MS))) return;
    throw new UmsError('UMS_E_RESTORE', {
      message: `${container.name} was let go but does not run`,
      fault: 'destination',
      mend: `See docker logs ${container.name}.`,
    });
  }

  async throttle(handle: string, share: number | undefined): Promise<boolean> {
    return await this.#throttle.set(readHandle(handle).id, await this.processes(handle), share);
  }

  async remove(handle: string, options: RemoveOptions): Promise<void> {
    const container = readHandle(handle);
    const { id, key } = container;
    giveUpDump(id);
    await this.#restores.giveUp(id);
    const inspect = await inspectContainer(id);
    const record = key === undefined ? undefined : await this.#records.read(key);
    if (inspect !== undefined) {
      await waitUntilUntraced(await this.processes(handle), UNTRACED_LIMIT_MS);
      await this.#endForGood(container, inspect);
      await removeContainer(id);
    }
    await unlinkRuntime(id);
    await this.#area.remove(id);
    await this.#throttle.set(id, [], undefined);
    // A record is there until the migration is settled: until then removing is undoing.
    if (record !== undefined && key !== undefined) return await undoRecord(this.#records, key, record);
    if (!options.volumes) return;
    const mounted = (inspect?.Mounts ?? []).flatMap(({ Type: type, Name: name }) => (type === 'volume' ? [name] : []));
    for (const name of new Set([...mounted, ...(options.described ?? [])])) {
      if (name !== undefined && options.keep?.includes(name) !== true) await removeVolume(name);
    }
  }

  /** Docker would let frozen processes go on in order to end them; the kernel kills them where they stand. */
  async #endForGood(container: DockerHandle, inspect: Inspect): Promise<void> {
    // Its restart policy goes first, or Docker would bring the service back at once.
    if (!['', 'no'].includes(inspect.HostConfig.RestartPolicy.Name)) await forbidRestart(inspect.Id);
    await this.#endProcesses(container, inspect);
  }

  /** Its restart policy may bring others at once. */
  async #endProcesses(container: DockerHandle, inspect: Inspect): Promise<void> {
    const freezer = await freezerSeen(container);
    if (freezer === undefined) return;
    await killFrozen(freezer, await processesOf(freezer), 'at once');
    const ended = await poll(
      async () => {
        const { Status: status, Pid: pid } = (await inspectContainer(inspect.Id))?.State ?? {};
        return status === undefined || status === 'exited' || status === 'dead' || pid !== inspect.State.Pid;
      },
      END_LIMIT_MS,
      20,
    );
    if (ended) return;
    throw new UmsError('UMS_E_ENGINE', {
      message: `Docker does not notice that ${nameOf(inspect)} has ended`,
      fault: 'ums',
      mend: `Look at \`docker inspect ${nameOf(inspect)}\`, and restart dockerd if it insists.`,
    });
  }

  async discard(handle: string): Promise<void> {
    const container = readHandle(handle);
    giveUpDump(container.id);
    const inspect = await inspectContainer(container.id);
    if (inspect === undefined) return;
    await waitUntilUntraced(await this.processes(handle), UNTRACED_LIMIT_MS);
    await this.#endForGood(container, inspect);
    await release(container.hostname);
  }

  async adopt(handle: string): Promise<void> {
    await unlinkRuntime(readHandle(handle).id);
  }

  async settle(handle: string): Promise<void> {
    const { id, key, hostname } = readHandle(handle);
    await unlinkRuntime(id);
    await this.#area.remove(id);
    await release(hostname);
    if (key !== undefined) await this.#records.remove(key);
  }

  startFresh(handle: string): Promise<void> {
    return this.start(handle);
  }

  async restartFresh(handle: string): Promise<void> {
    const container = readHandle(handle);
    // Whoever starts it from now on, Docker by its restart policy too, starts it from its files.
    await unlinkRuntime(container.id);
    await this.#area.remove(container.id);
    const inspect = await inspectContainer(container.id);
    if (inspect !== undefined) {
      await waitUntilUntraced(await this.processes(handle), UNTRACED_LIMIT_MS);
      await this.#endProcesses(container, inspect);
    }
    await this.start(handle);
    // By its restart policy Docker may begin it, too, and then says that it runs before it does.
    if (await poll(async () => (await this.state(handle)) === 'running', START_LIMIT_MS, 20)) return;
    throw new UmsError('UMS_E_ENGINE', {
      message: `${container.name} was begun anew and does not run`,
      fault: 'service',
      mend: `See docker logs ${container.name}.`,
    });
  }

  async stop(handle: string): Promise<void> {
    const { id } = readHandle(handle);
    const state = await this.state(handle);
    if (state === 'stopped' || state === 'created') return;
    const limit_s = ((await inspectContainer(id))?.Config.StopTimeout ?? STOP_LIMIT_S) + STOP_MORE_S;
    await stopContainer(id, limit_s * 1000);
  }

  async start(handle: string): Promise<void> {
    const { id, hostname } = readHandle(handle);
    if ((await this.state(handle)) === 'running') return;
    await release(hostname);
    await startContainer(id);
  }

  async #require(handle: string, ...wanted: ServiceState[]): Promise<ServiceState> {
    const { name } = readHandle(handle);
    const state = await this.state(handle);
    if (wanted.includes(state)) return state;
    throw state === 'absent' ? errors.gone(name) : errors.notRunning(name, state);
  }
}

export function createDockerDriver(options: DriverOptions): Driver {
  return new DockerDriver(options);
}
