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
import { type Freezer, freezerOf, isFrozen, processesOf, setFrozen, waitUntilUntraced } from '../oci/cgroup.ts';
import { dumpFrozen, afterDump, giveUpDump, prepareDump, waitForDumps } from '../oci/dump.ts';
import { EngineRestore } from '../oci/engine-restore.ts';
import { saveLog } from '../oci/log-file.ts';
import { RestoreArea } from '../oci/restore-area.ts';
import { CreateRecords } from '../oci/records.ts';
import { descriptorsOf, findProgram, initPid, RUNC_ROOT, runcVersion } from '../oci/runtime.ts';
import { freezerSeen, stateSeen } from '../oci/seen.ts';
import { ServiceErrors } from '../oci/service-errors.ts';
import { Throttle } from '../oci/throttle.ts';
import type { Specification } from '../specification.ts';
import { canCreate } from './can-create.ts';
import {
  change,
  engineError,
  imageLayers,
  inspectContainer,
  listContainers,
  podmanVersion,
  removeContainer,
} from './cli.ts';
import { createContainer, findContainer, removeVolumes, undoRecord, unmountShm } from './create.ts';
import { specificationOf } from './describe.ts';
import { type PodmanHandle, readHandle, writeHandle } from './handle.ts';
import { describeImage, exportImage, hasImage, importImage } from './images.ts';
import { endForGood, endProcesses } from './ending.ts';
import { lossesOf, refuseUnmovable } from './losses.ts';
import { type CreateRecord, createRecordSchema } from './records.ts';
import { PodmanNotes } from './notes.ts';
import { logOfContainer, startOf } from './restore.ts';
import type { Inspect } from './schema.ts';
import { stateOf } from './seen.ts';
import { configOf, namedVolumes, sourceTrees, volumesOf } from './surroundings.ts';

/** Milliseconds for CRIU to let go of tasks after its page server went away. */
const UNTRACED_LIMIT_MS = 60_000;
const KNOWN_MAX = 64;
const FREEZE_LIMIT_MS = 10_000;
const THAW_LIMIT_MS = 5000;
/**
 * After a dump the service usually is restored elsewhere at once and waits for that. Podman's own program, which takes a
 * processor for a tenth of a second, can come when it is over: on a host with few of them that is a third of the time away.
 */
const RESTORED_BY_MS = 300;

const errors = new ServiceErrors('Podman', 'podman');

export class PodmanDriver implements Driver {
  readonly engine = 'podman';
  readonly #area: RestoreArea;
  readonly #restores: EngineRestore;
  readonly #throttle: Throttle;
  readonly #notes: PodmanNotes;
  readonly #records: CreateRecords<CreateRecord>;
  /**
   * What Podman said of containers shortly before it is needed, while the service stands still: of one made here and not
   * started yet, about which nothing changes short of its removal, at which the restore fails by itself; and of one that
   * will be dumped.
   */
  readonly #known = new Map<string, Inspect>();

  constructor(options: DriverOptions) {
    this.#area = new RestoreArea(options.runDir);
    this.#restores = new EngineRestore(this.#area);
    this.#throttle = new Throttle(options.runDir);
    this.#notes = new PodmanNotes(options.runDir);
    this.#records = new CreateRecords(options.stateDir, 'podman', createRecordSchema);
  }

  async fingerprint(): Promise<EngineFingerprint> {
    const version = await podmanVersion();
    const runtime = await runcVersion();
    const base = { engine: this.engine, version: version ?? '', runtime: runtime ?? '' } as const;
    if (version === undefined) {
      return { ...base, available: false, problem: 'Podman is not installed', mend: 'apt install podman' };
    }
    if (runtime === undefined) {
      return { ...base, available: false, problem: 'runc is not installed', mend: 'apt install runc' };
    }
    return { ...base, available: true };
  }

  async list(): Promise<ServiceSummary[]> {
    if ((await findProgram('podman')) === undefined) return [];
    const containers = await listContainers();
    await this.#area.sweep(new Set(containers.map((container) => container.Id)));
    const summaries: ServiceSummary[] = [];
    for (const container of containers) {
      if (container.IsInfra) continue;
      summaries.push({
        engine: this.engine,
        id: container.Id,
        name: container.Names[0] ?? container.Id.slice(0, 12),
        state: await stateOf(this.#area, container.Id, container.State, container.Pid),
        image: container.Image,
        pid: container.Pid,
        ports: container.Ports.map(
          (port) =>
            `${port.host_ip === '' ? '0.0.0.0' : port.host_ip}:${port.host_port}->${port.container_port}/${port.protocol}`,
        ),
        created_at: new Date(container.Created).toISOString(),
      });
    }
    return summaries;
  }

  async describe(reference: string): Promise<ServiceDescription> {
    const summary = errors.find(reference, await this.list());
    const inspect = await inspectContainer(summary.id);
    if (inspect === undefined) throw errors.unknown(reference);
    const volumes = await volumesOf(inspect);
    refuseUnmovable(inspect);
    const image = await describeImage(inspect.Image, inspect.ImageName);
    return {
      summary,
      specification: specificationOf(inspect, { image, volumes, ...(await configOf(inspect)) }),
      handle: writeHandle({ v: 1, engine: 'podman', id: inspect.Id, name: inspect.Name }),
      trees: sourceTrees(inspect),
      losses: lossesOf(inspect, volumes),
    };
  }

  async state(handle: string): Promise<ServiceState> {
    const { id } = readHandle(handle);
    const seen = await stateSeen(this.#area, { root: RUNC_ROOT, id });
    if (seen !== undefined) return seen;
    // Podman would answer only when the restore that waits for its images has ended.
    if (await this.#restores.waits(id)) return 'created';
    const inspect = await inspectContainer(id);
    if (inspect === undefined) return 'absent';
    return await stateOf(this.#area, inspect.Id, inspect.State.Status, inspect.State.Pid);
  }

  async processes(handle: string): Promise<number[]> {
    const { id } = readHandle(handle);
    const seen = await freezerSeen({ root: RUNC_ROOT, id });
    if (seen !== undefined) return await processesOf(seen);
    const inspect = await inspectContainer(id);
    const freezer = inspect === undefined ? undefined : await this.#freezer(inspect);
    return freezer === undefined ? [] : await processesOf(freezer);
  }

  async #freezer(inspect: Inspect): Promise<Freezer | undefined> {
    return inspect.State.Pid > 0 ? await freezerOf(inspect.State.Pid) : undefined;
  }

  async address(handle: string): Promise<string | undefined> {
    const inspect = await inspectContainer(readHandle(handle).id);
    if (inspect === undefined || inspect.State.Pid === 0) return undefined;
    if (inspect.HostConfig.NetworkMode === 'host') return '127.0.0.1';
    const addresses = [
      inspect.NetworkSettings.IPAddress,
      ...Object.values(inspect.NetworkSettings.Networks).map((network) => network.IPAddress),
    ];
    return addresses.find((address) => address !== '');
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
    const inspect = await inspectContainer(created.id);
    if (inspect !== undefined) this.#remember(inspect);
    return created;
  }

  #remember(inspect: Inspect): void {
    if (this.#known.size >= KNOWN_MAX) this.#known.clear();
    this.#known.set(inspect.Id, inspect);
  }

  findCreated(specification: Specification, key: string): Promise<CreatedService | undefined> {
    return findContainer(this.#records, specification, key);
  }

  async freeze(handle: string): Promise<void> {
    const { id, name } = readHandle(handle);
    const state = await this.state(handle);
    if (state === 'frozen') return this.#notes.later(id, () => this.#tellFrozen(id));
    if (state === 'absent') throw errors.gone(name);
    if (state !== 'running') throw errors.notRunning(name, state);
    const freezer = await freezerSeen({ root: RUNC_ROOT, id });
    if (freezer === undefined || !(await setFrozen(freezer, true, FREEZE_LIMIT_MS))) {
      throw new UmsError('UMS_E_ENGINE', { message: `${name} could not be frozen`, fault: 'source' });
    }
  }

  async thaw(handle: string): Promise<void> {
    const { id } = readHandle(handle);
    await waitForDumps(id, UNTRACED_LIMIT_MS);
    await this.#throttle.set(id, [], undefined);
    await this.#notes.written(id);
    const freezer = await freezerSeen({ root: RUNC_ROOT, id });
    if (freezer !== undefined && (await isFrozen(freezer)) && !(await this.#area.exists(id))) {
      await waitUntilUntraced(await processesOf(freezer), UNTRACED_LIMIT_MS);
      await setFrozen(freezer, false, THAW_LIMIT_MS);
    }
    const { inspect, state } = await this.#require(handle);
    if (state !== 'running') throw errors.notRunning(inspect.Name, state);
    if (inspect.State.Status !== 'paused') return;
    try {
      await this.#notes.write(id, 'unpause');
    } catch (error) {
      throw engineError(error, `thaw ${inspect.Name}`);
    }
  }

  async prepareCheckpoint(handle: string, request: CheckpointRequest): Promise<void> {
    const { id, name } = readHandle(handle);
    const state = await this.state(handle);
    if (state !== 'running' && state !== 'frozen') throw errors.notRunning(name, state);
    const inspect = await inspectContainer(id);
    if (inspect !== undefined) this.#remember(inspect);
    await prepareDump({ root: RUNC_ROOT, id }, request, await this.processes(handle));
  }

  descriptors(handle: string): Promise<string | undefined> {
    return descriptorsOf(RUNC_ROOT, readHandle(handle).id);
  }

  async checkpoint(handle: string, request: CheckpointRequest): Promise<void> {
    const { id, name } = readHandle(handle);
    const state = await this.state(handle);
    if (state === 'absent') throw errors.gone(name);
    if (state !== 'frozen') throw errors.notRunning(name, state);
    await this.#throttle.set(id, [], undefined);
    const pids = await this.processes(handle);
    // Both wait for others, and the service stands still meanwhile.
    const [dumped, saved] = await Promise.allSettled([
      dumpFrozen({ root: RUNC_ROOT, id }, request, pids),
      this.#inspectKnown(id).then((inspect) => {
        const log = inspect === undefined ? undefined : logOfContainer(inspect);
        return log === undefined ? undefined : saveLog(log, request.imagesDir);
      }),
    ]);
    if (dumped.status === 'rejected') throw dumped.reason;
    if (saved.status === 'rejected') throw saved.reason;
    this.#notes.later(id, () => this.#tellFrozen(id), RESTORED_BY_MS);
  }

  afterCheckpoint(handle: string): AfterCheckpoint {
    return afterDump(readHandle(handle).id);
  }

  async #tellFrozen(id: string): Promise<void> {
    if ((await inspectContainer(id))?.State.Status === 'running') await this.#notes.write(id, 'pause');
  }

  /** Where its log is does not change: what Podman said before the freeze will do. */
  async #inspectKnown(id: string): Promise<Inspect | undefined> {
    const known = this.#known.get(id);
    this.#known.delete(id);
    return known ?? (await inspectContainer(id));
  }

  async prepareRestore(handle: string, request: RestoreRequest): Promise<void> {
    const { id, shared = [] } = readHandle(handle);
    if (await this.#restores.isPrepared(id, request)) return;
    await this.#restores.giveUp(id);
    const { inspect, state } = await this.#require(handle);
    if (state !== 'created') throw errors.notRunning(inspect.Name, state);
    this.#remember(inspect);
    await this.#restores.prepare(startOf(this.#area, inspect, shared), request);
  }

  async restore(handle: string, request: RestoreRequest): Promise<void> {
    const { id, shared = [] } = readHandle(handle);
    const known = this.#known.get(id);
    this.#known.delete(id);
    if (known !== undefined && (await initPid(RUNC_ROOT, id)) === undefined) {
      return await this.#restores.run(startOf(this.#area, known, shared), request);
    }
    if (known === undefined && (await this.#restores.waits(id))) await this.#restores.giveUp(id);
    const { inspect, state } = await this.#require(handle);
    if (state === 'restored') return;
    if (state !== 'created') throw errors.notRunning(inspect.Name, state);
    await this.#restores.run(startOf(this.#area, inspect, shared), request);
  }

  async resume(handle: string): Promise<void> {
    const { id, name } = readHandle(handle);
    if ((await stateSeen(this.#area, { root: RUNC_ROOT, id })) !== 'restored') {
      const { inspect, state } = await this.#require(handle);
      if (state === 'running' && inspect.State.Status === 'running') return;
      if (state !== 'restored' && state !== 'running') throw errors.notRunning(name, state);
    }
    const freezer = await freezerSeen({ root: RUNC_ROOT, id });
    if (freezer === undefined || !(await setFrozen(freezer, false, THAW_LIMIT_MS))) {
      throw new UmsError('UMS_E_RESTORE', {
        message: `${name} was let go but does not run`,
        fault: 'destination',
        mend: `See podman logs ${name}.`,
      });
    }
    this.#notes.later(id, () => this.#tellStarted(id, name));
  }

  /** Podman still has to take note that the container runs: what it starts has been let go already. */
  async #tellStarted(id: string, name: string): Promise<void> {
    try {
      await this.#notes.write(id, 'start');
    } catch (error) {
      throw engineError(error, `let ${name} run`);
    }
  }

  async throttle(handle: string, share: number | undefined): Promise<boolean> {
    return await this.#throttle.set(readHandle(handle).id, await this.processes(handle), share);
  }

  async remove(handle: string, options: RemoveOptions): Promise<void> {
    const known = readHandle(handle);
    giveUpDump(known.id);
    await this.#restores.giveUp(known.id);
    await this.#notes.written(known.id);
    const inspect = await inspectContainer(known.id);
    const record = known.key === undefined ? undefined : await this.#records.read(known.key);
    const named = inspect === undefined ? [] : namedVolumes(inspect);
    if (inspect !== undefined) await this.#removeContainer(known, inspect);
    await this.#area.remove(known.id);
    await this.#throttle.set(known.id, [], undefined);
    // A record is there until the migration is settled: until then removing is undoing.
    if (record !== undefined && known.key !== undefined) {
      await undoRecord(this.#records, known.key, record);
    } else if (options.volumes) {
      const names = new Set([...named, ...(options.described ?? [])]);
      await removeVolumes([...names].filter((name) => options.keep?.includes(name) !== true));
    }
  }

  async #removeContainer(known: PodmanHandle, inspect: Inspect): Promise<void> {
    await waitUntilUntraced(await this.processes(writeHandle(known)), UNTRACED_LIMIT_MS);
    await removeContainer(inspect.Id, inspect.Name);
    await unmountShm(inspect);
  }

  async discard(handle: string): Promise<void> {
    const { id } = readHandle(handle);
    giveUpDump(id);
    await this.#notes.written(id);
    const inspect = await inspectContainer(id);
    if (inspect === undefined) return;
    const pids = await this.processes(handle);
    await waitUntilUntraced(pids, UNTRACED_LIMIT_MS);
    await endForGood(inspect, pids);
  }

  async adopt(handle: string): Promise<void> {
    await this.#area.disarm(readHandle(handle).id);
  }

  async settle(handle: string): Promise<void> {
    const known = readHandle(handle);
    await this.#notes.written(known.id);
    if (await this.#area.exists(known.id)) {
      const { inspect, state } = await this.#require(handle);
      if (state === 'running' && inspect.State.Status !== 'running') await this.#tellStarted(known.id, known.name);
    }
    await this.#area.settle(known.id);
    if (known.key !== undefined) await this.#records.remove(known.key);
  }

  startFresh(handle: string): Promise<void> {
    return this.start(handle);
  }

  async restartFresh(handle: string): Promise<void> {
    const { id } = readHandle(handle);
    await this.#notes.written(id);
    // Whoever starts it from now on, Podman by its restart policy too, starts it from its files.
    await this.#area.settle(id);
    const inspect = await inspectContainer(id);
    if (inspect !== undefined) {
      const pids = await this.processes(handle);
      await waitUntilUntraced(pids, UNTRACED_LIMIT_MS);
      await endProcesses(inspect, pids);
    }
    await this.start(handle);
  }

  async stop(handle: string): Promise<void> {
    const { inspect, state } = await this.#require(handle);
    if (state === 'stopped' || state === 'created') return;
    try {
      const limit_ms = ((inspect.Config.StopTimeout ?? 10) + 60) * 1000;
      await change(['stop', inspect.Id], { timeout_ms: limit_ms });
    } catch (error) {
      throw engineError(error, `stop ${inspect.Name}`);
    }
  }

  async start(handle: string): Promise<void> {
    const { inspect, state } = await this.#require(handle);
    if (state === 'running') return;
    try {
      await change(['start', inspect.Id]);
    } catch (error) {
      throw engineError(error, `start ${inspect.Name}`);
    }
  }

  async #require(handle: string): Promise<{ inspect: Inspect; state: ServiceState }> {
    const known = readHandle(handle);
    const inspect = await inspectContainer(known.id);
    if (inspect === undefined) throw errors.gone(known.name);
    return { inspect, state: await stateOf(this.#area, inspect.Id, inspect.State.Status, inspect.State.Pid) };
  }
}

export function createPodmanDriver(options: DriverOptions): Driver {
  return new PodmanDriver(options);
}
