import { rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
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
import { freezerOf, isFrozen, isMissing, processesOf, setFrozen, waitUntilUntraced, poll } from '../oci/cgroup.ts';
import { afterDump, dumpFrozen, giveUpDump, prepareDump, waitForDumps } from '../oci/dump.ts';
import { EngineRestore } from '../oci/engine-restore.ts';
import { exists } from '../oci/files.ts';
import { saveLog } from '../oci/log-file.ts';
import { CreateRecords } from '../oci/records.ts';
import { RestoreArea } from '../oci/restore-area.ts';
import { descriptorsOf, initPid, runcVersion } from '../oci/runtime.ts';
import { freezerSeen, stateSeen } from '../oci/seen.ts';
import { Throttle } from '../oci/throttle.ts';
import type { Specification } from '../specification.ts';
import { canCreate } from './can-create.ts';
import { ContainerdClient, settingsFromEnvironment } from './client.ts';
import {
  createContainer,
  type CreateRecord,
  createdAt,
  createRecordSchema,
  findContainer,
  handleOf,
  sourceTrees,
  undoRecord,
} from './create.ts';
import { parseConfig, specificationOf, stdioOf, textOf } from './describe.ts';
import { endTask, stopTask } from './ending.ts';
import { errors } from './errors.ts';
import { type ContainerdHandle, readHandle, writeHandle } from './handle.ts';
import { hold, release, specOf } from './hold.ts';
import { describeImage, exportImage, imageLayers, importImage, localImage } from './images.ts';
import { forbidRestart, handOver, restarts, settleRecord, wantRunning } from './labels.ts';
import { LOG_LIMIT_BYTES, lossesOf, refuseUnmovable, upperOf } from './losses.ts';
import { logOf, startOf, TaskRuntimes } from './restore.ts';
import type { Container, Task } from './schema.ts';
import { startTask, waitForStarts } from './start-task.ts';
import { ownerOf } from './surroundings.ts';

/** Milliseconds for CRIU to let go of tasks after its page server went away. */
const UNTRACED_LIMIT_MS = 60_000;
const FREEZE_LIMIT_MS = 10_000;
const THAW_LIMIT_MS = 5000;
const START_LIMIT_MS = 60_000;
const STARTED_BY_OTHERS_LIMIT_MS = 5000;

export class ContainerdDriver implements Driver {
  readonly engine = 'containerd';
  readonly #client = new ContainerdClient(settingsFromEnvironment());
  readonly #area: RestoreArea;
  readonly #restores: EngineRestore;
  readonly #runtimes: TaskRuntimes;
  readonly #throttle: Throttle;
  readonly #records: CreateRecords<CreateRecord>;
  /** Holds that were begun with a freeze and may still be under way. */
  readonly #holds = new Map<string, Promise<void>>();

  constructor(options: DriverOptions) {
    // Of its own: containers of other engines may have the same names.
    const runDir = join(options.runDir, 'containerd');
    this.#area = new RestoreArea(runDir);
    this.#restores = new EngineRestore(this.#area);
    this.#runtimes = new TaskRuntimes(runDir);
    this.#throttle = new Throttle(runDir);
    this.#records = new CreateRecords(options.stateDir, 'containerd', createRecordSchema);
  }

  async fingerprint(): Promise<EngineFingerprint> {
    const runtime = await runcVersion();
    const base = { engine: this.engine, version: '', runtime: runtime ?? '', available: false } as const;
    const owner = ownerOf(this.#client.namespace);
    if (owner !== undefined) {
      const problem = `the containers in the namespace ${this.#client.namespace} are ${owner}'s, which would fight over them`;
      return { ...base, problem, mend: 'Set CONTAINERD_NAMESPACE to one whose containers are yours.' };
    }
    if (!(await exists(this.#client.address))) {
      return { ...base, problem: 'containerd does not run', mend: 'apt install containerd' };
    }
    if (runtime === undefined) return { ...base, problem: 'runc is not installed', mend: 'apt install runc' };
    try {
      return { ...base, version: await this.#client.version(), available: true };
    } catch (error) {
      if (!(error instanceof UmsError)) throw error;
      return { ...base, problem: error.message, mend: error.mend ?? 'See what containerd says.' };
    }
  }

  async list(): Promise<ServiceSummary[]> {
    if (ownerOf(this.#client.namespace) !== undefined || !(await exists(this.#client.address))) return [];
    const [containers, tasks] = await Promise.all([this.#client.containers(), this.#client.tasks()]);
    const byId = new Map(tasks.map((task) => [task.id, task]));
    await this.#runtimes.sweep(new Set(byId.keys()), this.#area);
    return await Promise.all(containers.map((container) => this.#summaryOf(container, byId.get(container.id))));
  }

  async #summaryOf(container: Container, task: Task | undefined): Promise<ServiceSummary> {
    const { id, image, created_at: created } = container;
    const ended = task === undefined || task.status === 'STOPPED';
    return {
      engine: this.engine,
      id,
      name: id,
      state: ended ? 'stopped' : await this.#stateOf(task),
      image,
      pid: ended ? 0 : task.pid,
      ports: [],
      created_at: new Date((created?.seconds ?? 0) * 1000).toISOString(),
    };
  }

  async describe(reference: string): Promise<ServiceDescription> {
    const { id } = errors.find(reference, await this.list());
    const [container, task] = await Promise.all([this.#client.container(id), this.#client.task(id)]);
    if (container === undefined) throw errors.unknown(reference);
    const spec = specOf(container);
    const config = parseConfig(textOf(spec), id);
    const hasSnapshot = container.snapshotter !== '' && container.snapshot_key !== '';
    const mounts = hasSnapshot ? await this.#client.snapshotMounts(container.snapshotter, container.snapshot_key) : [];
    await refuseUnmovable({ container, config, task, mounts });
    const stdio = stdioOf(task);
    const image = await describeImage(this.#client, container);
    return {
      summary: await this.#summaryOf(container, task),
      specification: specificationOf(container, image, stdio),
      handle: writeHandle(handleOf(this.#client, container, stdio)),
      trees: sourceTrees(upperOf(mounts) ?? '', textOf(spec), id),
      losses: lossesOf(stdio),
    };
  }

  /** The container behind a handle; one that somebody made later under the same name is another. */
  async #find({ id, created, namespace }: ContainerdHandle): Promise<Container | undefined> {
    if (namespace !== this.#client.namespace) {
      throw new UmsError('UMS_E_ENGINE', {
        message: `${id} is in containerd's namespace ${namespace}, and this agent looks after ${this.#client.namespace}`,
        fault: 'user',
        mend: `Start the agent with CONTAINERD_NAMESPACE=${namespace} until its migration has ended.`,
      });
    }
    const container = await this.#client.container(id);
    return container !== undefined && createdAt(container) === created ? container : undefined;
  }

  async state(handle: string): Promise<ServiceState> {
    const known = readHandle(handle);
    const seen = await stateSeen(this.#area, known);
    if (seen !== undefined) return seen;
    // containerd would answer only when the restore that waits for its images has ended.
    if (await this.#restores.waits(known.id)) return 'created';
    if ((await this.#find(known)) === undefined) return 'absent';
    const task = await this.#client.task(known.id);
    if (task !== undefined) return await this.#stateOf(task);
    const unfinished = known.key !== undefined && (await this.#records.read(known.key)) !== undefined;
    return unfinished ? 'created' : 'stopped';
  }

  /** containerd's word for where the task is in its life, the kernel's for whether its processes run. */
  async #stateOf(task: Task): Promise<ServiceState> {
    if (task.status === 'CREATED') return 'created';
    const freezer = task.status !== 'STOPPED' && task.pid > 0 ? await freezerOf(task.pid) : undefined;
    if (freezer === undefined) return 'stopped';
    if (!(await isFrozen(freezer))) return 'running';
    return (await this.#area.exists(task.id)) ? 'restored' : 'frozen';
  }

  async processes(handle: string): Promise<number[]> {
    const freezer = await freezerSeen(readHandle(handle));
    return freezer === undefined ? [] : await processesOf(freezer);
  }

  async address(handle: string): Promise<string | undefined> {
    const known = readHandle(handle);
    return known.ownNetwork || (await freezerSeen(known)) === undefined ? undefined : '127.0.0.1';
  }

  canCreate(specification: Specification): Promise<Finding[]> {
    return canCreate(this.#client, specification);
  }

  async hasImage(specification: Specification): Promise<boolean> {
    return (await localImage(this.#client, specification)) !== undefined;
  }

  imageLayers(): Promise<string[]> {
    return imageLayers(this.#client);
  }

  exportImage(
    specification: Specification,
    sink: NodeJS.WritableStream,
    signal: AbortSignal,
    known: readonly string[] = [],
  ): Promise<void> {
    return exportImage(this.#client, specification, sink, signal, known);
  }

  importImage(specification: Specification, source: NodeJS.ReadableStream, signal: AbortSignal): Promise<void> {
    return importImage(this.#client, specification, source, signal);
  }

  create(specification: Specification, key: string): Promise<CreatedService> {
    return createContainer(this.#client, this.#records, specification, key);
  }

  findCreated(specification: Specification, key: string): Promise<CreatedService | undefined> {
    return findContainer(this.#client, this.#records, specification, key);
  }

  /** containerd is not told that it is frozen: its word for it ("paused") would let anybody resume it. */
  async freeze(handle: string): Promise<void> {
    const known = readHandle(handle);
    const state = await this.state(handle);
    if (state === 'absent') throw errors.gone(known.id);
    if (state !== 'running' && state !== 'frozen') throw errors.notRunning(known.id, state);
    if (state === 'running') {
      const freezer = await freezerSeen(known);
      if (freezer === undefined || !(await setFrozen(freezer, true, FREEZE_LIMIT_MS))) {
        throw new UmsError('UMS_E_ENGINE', { message: `${known.id} could not be frozen`, fault: 'source' });
      }
    }
    // One that has arrived and only waits for its memory goes on by `resume`, and is the one copy.
    if (!(await this.#area.exists(known.id))) void this.#beginHold(known.id);
  }

  /** It waits for the disk, so it goes on beside the dump; the commit waits for it. */
  #beginHold(id: string): Promise<void> {
    const held = this.#holds.get(id) ?? hold(this.#client, id);
    this.#holds.set(id, held);
    // Who waits for it looks at how it ended.
    held.catch(() => undefined);
    return held;
  }

  async #release(id: string): Promise<void> {
    const begun = this.#holds.get(id);
    this.#holds.delete(id);
    await begun?.catch(() => undefined);
    await release(this.#client, id);
  }

  async thaw(handle: string): Promise<void> {
    const known = readHandle(handle);
    await waitForDumps(known.id, UNTRACED_LIMIT_MS);
    await this.#throttle.set(known.id, [], undefined);
    await this.#release(known.id);
    const freezer = await freezerSeen(known);
    if (freezer !== undefined && (await isFrozen(freezer)) && !(await this.#area.exists(known.id))) {
      await waitUntilUntraced(await processesOf(freezer), UNTRACED_LIMIT_MS);
      await setFrozen(freezer, false, THAW_LIMIT_MS);
    }
    await this.#require(handle, 'running');
  }

  async prepareCheckpoint(handle: string, request: CheckpointRequest): Promise<void> {
    await this.#require(handle, 'running', 'frozen');
    await prepareDump(readHandle(handle), request, await this.processes(handle));
  }

  descriptors(handle: string): Promise<string | undefined> {
    const { root, id } = readHandle(handle);
    return descriptorsOf(root, id);
  }

  async checkpoint(handle: string, request: CheckpointRequest): Promise<void> {
    const known = readHandle(handle);
    await this.#require(handle, 'frozen');
    await this.#throttle.set(known.id, [], undefined);
    const pids = await this.processes(handle);
    const log = logOf(known);
    // Both wait for others, and the service stands still meanwhile.
    const ends = await Promise.allSettled([
      dumpFrozen(known, request, pids),
      log === undefined ? undefined : saveLog(log, request.imagesDir),
    ]);
    for (const end of ends) if (end.status === 'rejected') throw end.reason;
  }

  afterCheckpoint(handle: string): AfterCheckpoint {
    const { id } = readHandle(handle);
    const { ended, holds } = afterDump(id);
    // After the commit nobody must start it from its files.
    const all = Promise.all([holds, this.#beginHold(id)]).then(() => undefined);
    // It is awaited when the destination has answered.
    all.catch(() => undefined);
    return { ended, holds: all };
  }

  async prepareRestore(handle: string, request: RestoreRequest): Promise<void> {
    const known = readHandle(handle);
    if (await this.#restores.isPrepared(known.id, request)) return;
    await this.#giveUp(known.id);
    await this.#require(handle, 'created');
    await this.#restores.prepare(startOf(this.#client, this.#area, this.#runtimes, known), request);
  }

  /** containerd has cleaned up only when it has answered whoever asked for the start. */
  async #giveUp(id: string): Promise<void> {
    await this.#restores.giveUp(id);
    await waitForStarts(id);
  }

  async restore(handle: string, request: RestoreRequest): Promise<void> {
    const known = readHandle(handle);
    if ((await initPid(known.root, known.id)) !== undefined) {
      const state = await this.#require(handle, 'created', 'restored');
      if (state === 'restored') return;
    }
    await this.#restores.run(startOf(this.#client, this.#area, this.#runtimes, known), request);
  }

  async resume(handle: string): Promise<void> {
    const known = readHandle(handle);
    if ((await stateSeen(this.#area, known)) !== 'restored') {
      const state = await this.#require(handle, 'running', 'restored');
      if (state === 'running') return;
    }
    const freezer = await freezerSeen(known);
    if (freezer !== undefined && (await setFrozen(freezer, false, THAW_LIMIT_MS))) return;
    throw new UmsError('UMS_E_RESTORE', {
      message: `${known.id} was let go but does not run`,
      fault: 'destination',
      mend: 'See what containerd says: journalctl -u containerd',
    });
  }

  async throttle(handle: string, share: number | undefined): Promise<boolean> {
    return await this.#throttle.set(readHandle(handle).id, await this.processes(handle), share);
  }

  async remove(handle: string, _options: RemoveOptions): Promise<void> {
    const known = readHandle(handle);
    const { id, key } = known;
    giveUpDump(id);
    await this.#giveUp(id);
    const container = await this.#find(known);
    const record = key === undefined ? undefined : await this.#records.read(key);
    if (container !== undefined) {
      await waitUntilUntraced(await this.processes(handle), UNTRACED_LIMIT_MS);
      // Or containerd could start it again before it is gone.
      if (restarts(container)) await hold(this.#client, id);
      await endTask(this.#client, known);
      await this.#client.deleteContainer(id);
      await this.#client.removeSnapshot(known.snapshotter, known.snapshotKey);
      await removeMovedLog(known);
    }
    this.#holds.delete(id);
    await this.#runtimes.remove(id);
    await this.#area.remove(id);
    await this.#throttle.set(id, [], undefined);
    // A record is there until the migration is settled: until then removing is undoing.
    if (record !== undefined && key !== undefined) await undoRecord(this.#client, this.#records, key, record);
  }

  async discard(handle: string): Promise<void> {
    const known = readHandle(handle);
    giveUpDump(known.id);
    if ((await this.#find(known)) === undefined) return;
    await waitUntilUntraced(await this.processes(handle), UNTRACED_LIMIT_MS);
    await forbidRestart(this.#client, known.id);
    await endTask(this.#client, known);
    await this.#release(known.id);
  }

  async adopt(handle: string): Promise<void> {
    const { id, key } = readHandle(handle);
    const record = key === undefined ? undefined : await this.#records.read(key);
    if (record !== undefined) await handOver(this.#client, id, record.restartLabels);
  }

  async settle(handle: string): Promise<void> {
    const known = readHandle(handle);
    await this.adopt(handle);
    await this.#runtimes.toRunc(known.id);
    await this.#area.remove(known.id);
    await this.#release(known.id);
    if (known.key === undefined) return;
    await settleRecord(this.#client, known);
    await this.#records.remove(known.key);
  }

  startFresh(handle: string): Promise<void> {
    return this.start(handle);
  }

  async restartFresh(handle: string): Promise<void> {
    const known = readHandle(handle);
    await this.#runtimes.toRunc(known.id);
    await this.#area.remove(known.id);
    if ((await this.#find(known)) !== undefined) {
      await waitUntilUntraced(await this.processes(handle), UNTRACED_LIMIT_MS);
      await endTask(this.#client, known);
    }
    await this.start(handle);
  }

  async stop(handle: string): Promise<void> {
    const known = readHandle(handle);
    const state = await this.state(handle);
    if (state === 'created') return;
    await stopTask(this.#client, known);
  }

  async start(handle: string): Promise<void> {
    const { id, namespace, stdio } = readHandle(handle);
    if ((await this.state(handle)) === 'running') return;
    await this.#release(id);
    await wantRunning(this.#client, id, true);
    try {
      await startTask({ address: this.#client.address, namespace, id, stdio }, START_LIMIT_MS);
    } catch (error) {
      // containerd's restart monitor may have been quicker: it starts it from its files as well.
      const started = async () => (await this.state(handle)) === 'running';
      if (!(await poll(started, STARTED_BY_OTHERS_LIMIT_MS, 50))) throw error;
    }
    await this.#runtimes.remove(id);
  }

  async #require(handle: string, ...wanted: ServiceState[]): Promise<ServiceState> {
    const { id } = readHandle(handle);
    const state = await this.state(handle);
    if (wanted.includes(state)) return state;
    throw state === 'absent' ? errors.gone(id) : errors.notRunning(id, state);
  }
}

/** A log file that went along as a whole; what is longer than what travels stays. */
async function removeMovedLog(known: ContainerdHandle): Promise<void> {
  const log = logOf(known);
  if (log === undefined) return;
  try {
    if ((await stat(log.path)).size <= LOG_LIMIT_BYTES) await rm(log.path, { force: true });
  } catch (error) {
    if (!isMissing(error)) throw error;
  }
}

export function createContainerdDriver(options: DriverOptions): Driver {
  return new ContainerdDriver(options);
}
