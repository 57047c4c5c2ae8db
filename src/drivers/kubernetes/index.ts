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
import { isFrozen, poll, processesOf, setFrozen, waitUntilUntraced } from '../oci/cgroup.ts';
import type { RuntimeContainer } from '../oci/container.ts';
import { afterDump, dumpFrozen, giveUpDump, prepareDump, waitForDumps } from '../oci/dump.ts';
import { EngineRestore } from '../oci/engine-restore.ts';
import { saveLog } from '../oci/log-file.ts';
import { CreateRecords } from '../oci/records.ts';
import { RestoreArea } from '../oci/restore-area.ts';
import { descriptorsOf, initPid } from '../oci/runtime.ts';
import { sweepRuntimeLinks, unlinkRuntime } from '../oci/runtime-links.ts';
import { freezerSeen, stateSeen } from '../oci/seen.ts';
import { Throttle } from '../oci/throttle.ts';
import type { Specification } from '../specification.ts';
import { Cluster } from './api.ts';
import { errors } from './errors.ts';
import { type Arrival, bringToGate, containerName, logHere, podName, podOfMigration, startOf } from './arrival.ts';
import { canCreate } from './can-create.ts';
import {
  createPlace,
  type CreateRecord,
  createRecordSchema,
  findPlace,
  forget,
  moveIn,
  removePlace,
} from './create.ts';
import { nameOf, sourceTrees, specificationOf, theContainer } from './describe.ts';
import { endWhereItStands, leaveGate, requireEnded } from './ending.ts';
import { fingerprintOf } from './fingerprint.ts';
import { removeGate } from './gate.ts';
import { type PodHandle, readHandle, writeHandle } from './handle.ts';
import { hold, release } from './hold.ts';
import { describeImage, exportImage, hasImage, importImage } from './images.ts';
import { lossesOf, refuseUnmovable } from './losses.ts';
import { MIGRATION_ANNOTATION } from './manifest.ts';
import { bundleOf, containerId, runtimeContainer } from './node.ts';
import { ownerOf } from './owner.ts';
import { Owners } from './owners.ts';
import type { Pod } from './schema.ts';

/** Milliseconds for CRIU to let go of tasks after its page server went away. */
const UNTRACED_LIMIT_MS = 60_000;
const FREEZE_LIMIT_MS = 10_000;
const THAW_LIMIT_MS = 5000;
/** The kubelet starts a container again by and by, waiting longer each time. */
const START_LIMIT_MS = 120_000;

/** Pods of this node, by their cluster's API and beneath its kubelet. */
export class KubernetesDriver implements Driver {
  readonly engine = 'kubernetes';
  readonly #cluster = new Cluster();
  readonly #owners = new Owners(this.#cluster);
  readonly #area: RestoreArea;
  readonly #restores: EngineRestore;
  readonly #throttle: Throttle;
  readonly #records: CreateRecords<CreateRecord>;

  constructor(options: DriverOptions) {
    this.#area = new RestoreArea(options.runDir);
    this.#restores = new EngineRestore(this.#area);
    this.#throttle = new Throttle(options.runDir);
    this.#records = new CreateRecords(options.stateDir, 'kubernetes', createRecordSchema);
  }

  fingerprint(): Promise<EngineFingerprint> {
    return fingerprintOf(this.#cluster);
  }

  async #podsHere(): Promise<Pod[]> {
    const node = await this.#cluster.node();
    return await (await this.#cluster.api()).podsOn(node.metadata.name);
  }

  async list(): Promise<ServiceSummary[]> {
    if (!Cluster.isInstalled()) return [];
    const pods = await this.#podsHere();
    await sweepRuntimeLinks();
    return await Promise.all(pods.map((pod) => this.#summaryOf(pod)));
  }

  async #summaryOf(pod: Pod): Promise<ServiceSummary> {
    const { state, pid } = await this.#seen(pod);
    const key = pod.metadata.annotations[MIGRATION_ANNOTATION];
    // As long as a migration makes it, it goes by that one's name.
    const arriving = key !== undefined && (await this.#records.read(key)) !== undefined;
    return {
      engine: this.engine,
      id: arriving ? key : pod.metadata.uid,
      name: nameOf(pod),
      state,
      pid,
      image: theContainer(pod).image,
      ports: theContainer(pod).ports.flatMap(({ hostPort, containerPort, protocol }) =>
        hostPort === undefined || hostPort === 0 ? [] : [`${hostPort}->${containerPort}/${protocol.toLowerCase()}`],
      ),
      created_at: pod.metadata.creationTimestamp,
    };
  }

  async #seen(pod: Pod): Promise<{ container: string | undefined; state: ServiceState; pid: number }> {
    const container = containerId(pod.status?.containerStatuses[0]?.containerID ?? '');
    if (container === undefined) return { container, state: 'created', pid: 0 };
    const { root, id } = runtimeContainer(container);
    const state = (await stateSeen(this.#area, { root, id })) ?? 'stopped';
    return { container, state, pid: (await initPid(root, id)) ?? 0 };
  }

  async describe(reference: string): Promise<ServiceDescription> {
    if (!Cluster.isInstalled()) throw errors.unknown(reference);
    const pods = await this.#podsHere();
    const summaries = await Promise.all(pods.map((pod) => this.#summaryOf(pod)));
    const summary = errors.find(reference, summaries);
    const pod = pods[summaries.indexOf(summary)];
    if (pod === undefined) throw errors.unknown(reference);
    refuseUnmovable(pod);
    const { container } = await this.#seen(pod);
    const bundle = container === undefined ? undefined : await bundleOf(container);
    if (container === undefined || bundle === undefined) throw errors.notRunning(summary.name, summary.state);
    await this.#requireRight(pod);
    const owner = await ownerOf(await this.#cluster.api(), pod);
    const { namespace, name, uid } = podName(pod);
    const owned = owner === undefined ? {} : { owner };
    return {
      summary,
      specification: specificationOf(pod, await describeImage(theContainer(pod).image), owner),
      handle: writeHandle({ v: 1, engine: 'kubernetes', namespace, name, uid, container, ...owned }),
      trees: sourceTrees(pod, bundle),
      losses: lossesOf(pod, owner),
    };
  }

  /** The pod is deleted when its service has moved: whoever may not would have it twice. */
  async #requireRight(pod: Pod): Promise<void> {
    const { namespace, name } = pod.metadata;
    if (await (await this.#cluster.api()).may('delete', 'pods', namespace)) return;
    throw new UmsError('UMS_E_ENGINE', {
      message: `The agent may not delete pods in namespace ${namespace}, so it cannot move ${name} away`,
      fault: 'user',
      state: 'Nothing was changed.',
      mend: 'Grant its user that verb (kubectl create role, kubectl create rolebinding).',
    });
  }

  /** The container that the handle means now. At the destination it is known only once it waits for its processes. */
  async #container(handle: PodHandle): Promise<RuntimeContainer | undefined> {
    const id = handle.container ?? (await this.#containerOfKey(handle));
    return id === undefined ? undefined : runtimeContainer(id);
  }

  async #containerOfKey({ key, namespace, name }: PodHandle): Promise<string | undefined> {
    const record = key === undefined ? undefined : await this.#records.read(key);
    if (record !== undefined) return record.container;
    const pod = await (await this.#cluster.api()).pod(namespace, name);
    return containerId(pod?.status?.containerStatuses[0]?.containerID ?? '');
  }

  async #requireContainer(handle: PodHandle): Promise<RuntimeContainer> {
    const container = await this.#container(handle);
    if (container === undefined) throw errors.gone(handle.name);
    return container;
  }

  /** The pod that the handle means, as the API server knows it. */
  async #pod({ key, namespace, name, uid }: PodHandle): Promise<Pod | undefined> {
    const api = await this.#cluster.api();
    if (uid !== undefined) {
      const pod = await api.pod(namespace, name);
      return pod?.metadata.uid === uid ? pod : undefined;
    }
    const record = key === undefined ? undefined : await this.#records.read(key);
    if (record === undefined || key === undefined) return await api.pod(namespace, name);
    return await podOfMigration(api, record, key);
  }

  async state(handle: string): Promise<ServiceState> {
    const known = readHandle(handle);
    const container = await this.#container(known);
    const seen = container === undefined ? undefined : await stateSeen(this.#area, container);
    if (seen !== undefined) return seen;
    if (known.key !== undefined && container === undefined) {
      return (await this.#records.read(known.key)) === undefined ? 'absent' : 'created';
    }
    return (await this.#pod(known)) === undefined ? 'absent' : 'stopped';
  }

  async processes(handle: string): Promise<number[]> {
    const container = await this.#container(readHandle(handle));
    const freezer = container === undefined ? undefined : await freezerSeen(container);
    return freezer === undefined ? [] : await processesOf(freezer);
  }

  async address(handle: string): Promise<string | undefined> {
    const address = (await this.#pod(readHandle(handle)))?.status?.podIP;
    return address === '' ? undefined : address;
  }

  canCreate(specification: Specification): Promise<Finding[]> {
    return canCreate(this.#cluster, specification);
  }

  hasImage(specification: Specification): Promise<boolean> {
    return hasImage(specification);
  }

  /** Whole images travel: containerd names layers by what a registry packed, which every node may have packed otherwise. */
  imageLayers(): Promise<string[]> {
    return Promise.resolve([]);
  }

  exportImage(specification: Specification, sink: NodeJS.WritableStream, signal: AbortSignal): Promise<void> {
    return exportImage(specification, sink, signal);
  }

  importImage(specification: Specification, source: NodeJS.ReadableStream, signal: AbortSignal): Promise<void> {
    return importImage(specification, source, signal);
  }

  async create(specification: Specification, key: string): Promise<CreatedService> {
    const found = await findPlace(this.#records, key);
    return found ?? (await createPlace(this.#records, await this.#cluster.api(), specification, key));
  }

  findCreated(_specification: Specification, key: string): Promise<CreatedService | undefined> {
    return findPlace(this.#records, key);
  }

  /** The kubelet is not told that it is frozen, and has no word for it. It is kept from starting another one. */
  async freeze(handle: string): Promise<void> {
    const known = readHandle(handle);
    const state = await this.state(handle);
    if (state === 'frozen') return await this.#hold(known);
    if (state === 'absent') throw errors.gone(known.name);
    if (state !== 'running') throw errors.notRunning(known.name, state);
    await this.#owners.hold(known);
    const freezer = await freezerSeen(await this.#requireContainer(known));
    if (freezer === undefined || !(await setFrozen(freezer, true, FREEZE_LIMIT_MS))) {
      throw new UmsError('UMS_E_ENGINE', { message: `${known.name} could not be frozen`, fault: 'source' });
    }
    await this.#hold(known);
  }

  /** One that has arrived is the destination's, whose gate keeps it. */
  async #hold({ uid }: PodHandle): Promise<void> {
    if (uid !== undefined) await hold(uid);
  }

  async thaw(handle: string): Promise<void> {
    const known = readHandle(handle);
    const [thawed] = await Promise.allSettled([this.#thaw(handle, known)]);
    await this.#owners.stays(known);
    if (thawed.status === 'rejected') throw thawed.reason;
  }

  async #thaw(handle: string, known: PodHandle): Promise<void> {
    const container = await this.#requireContainer(known);
    await waitForDumps(container.id, UNTRACED_LIMIT_MS);
    await this.#throttle.set(container.id, [], undefined);
    if (known.uid !== undefined) await release(known.uid);
    const freezer = await freezerSeen(container);
    if (freezer !== undefined && (await isFrozen(freezer)) && !(await this.#area.exists(container.id))) {
      await waitUntilUntraced(await processesOf(freezer), UNTRACED_LIMIT_MS);
      await setFrozen(freezer, false, THAW_LIMIT_MS);
    }
    await this.#require(handle, 'running');
  }

  async prepareCheckpoint(handle: string, request: CheckpointRequest): Promise<void> {
    const state = await this.#require(handle, 'running', 'frozen');
    if (state === 'running') await this.#owners.hold(readHandle(handle));
    await prepareDump(await this.#requireContainer(readHandle(handle)), request, await this.processes(handle));
  }

  async descriptors(handle: string): Promise<string | undefined> {
    const { root, id } = await this.#requireContainer(readHandle(handle));
    return await descriptorsOf(root, id);
  }

  async checkpoint(handle: string, request: CheckpointRequest): Promise<void> {
    const known = readHandle(handle);
    const container = await this.#requireContainer(known);
    await this.#require(handle, 'frozen');
    await this.#throttle.set(container.id, [], undefined);
    const pids = await this.processes(handle);
    // Both wait for others, and the service stands still meanwhile.
    const [dumped, saved] = await Promise.allSettled([
      dumpFrozen(container, request, pids),
      this.#saveLog(known, request.imagesDir),
    ]);
    if (dumped.status === 'rejected') throw dumped.reason;
    if (saved.status === 'rejected') throw saved.reason;
  }

  async #saveLog(handle: PodHandle, imagesDir: string): Promise<void> {
    const pod = await this.#pod(handle);
    const log = pod === undefined ? undefined : await logHere(podName(pod), containerName(pod));
    if (log !== undefined) await saveLog(log, imagesDir);
  }

  afterCheckpoint(handle: string): AfterCheckpoint {
    const { container } = readHandle(handle);
    return container === undefined ? { ended: Promise.resolve(), holds: Promise.resolve() } : afterDump(container);
  }

  /** The pod comes as far as it can without its processes: network, volumes, sandbox. */
  async prepareRestore(handle: string): Promise<void> {
    if ((await this.state(handle)) !== 'created') return;
    await this.#arrive(readHandle(handle));
  }

  async #arrive({ key, name }: PodHandle): Promise<Arrival & { record: CreateRecord; key: string }> {
    const record = key === undefined ? undefined : await this.#records.read(key);
    if (record === undefined || key === undefined) throw errors.gone(name);
    return { ...(await bringToGate(this.#cluster, record, key)), record, key };
  }

  async restore(handle: string, request: RestoreRequest): Promise<void> {
    const known = readHandle(handle);
    if ((await this.#require(handle, 'created', 'restored')) === 'restored') return;
    const { record, key, ...arrival } = await this.#arrive(known);
    const { container } = arrival.waiting;
    const { uid } = arrival.pod.metadata;
    const bundle = await bundleOf(container);
    if (bundle === undefined) throw errors.gone(known.name);
    await this.#records.write(key, { ...record, uid, container });
    await moveIn(record, key, uid, bundle);
    await this.#restores.run(await startOf(this.#area, arrival, key), request);
  }

  async resume(handle: string): Promise<void> {
    const known = readHandle(handle);
    const container = await this.#requireContainer(known);
    if ((await stateSeen(this.#area, container)) !== 'restored') {
      if ((await this.#require(handle, 'running', 'restored')) === 'running') return;
    }
    const freezer = await freezerSeen(container);
    if (freezer !== undefined && (await setFrozen(freezer, false, THAW_LIMIT_MS))) return;
    throw new UmsError('UMS_E_RESTORE', {
      message: `${known.name} was let go but does not run`,
      fault: 'destination',
      mend: `See kubectl --namespace ${known.namespace} logs ${known.name}.`,
    });
  }

  async throttle(handle: string, share: number | undefined): Promise<boolean> {
    const { id } = await this.#requireContainer(readHandle(handle));
    return await this.#throttle.set(id, await this.processes(handle), share);
  }

  async remove(handle: string, { goneTo }: RemoveOptions): Promise<void> {
    const known = readHandle(handle);
    const { key } = known;
    const container = await this.#container(known);
    if (container !== undefined) giveUpDump(container.id);
    const pod = await this.#pod(known);
    await endWhereItStands(container);
    if (pod !== undefined) {
      const { namespace, name, uid } = podName(pod);
      await (await this.#cluster.api()).deletePod(namespace, name, uid);
    }
    if (key !== undefined && pod !== undefined) await leaveGate(key, podName(pod));
    if (container !== undefined) {
      await requireEnded(known.name, container);
      await unlinkRuntime(container.id);
      await this.#area.remove(container.id);
    }
    if (key !== undefined) await forget(this.#records, key);
    await this.#owners.left(known, goneTo);
  }

  /** A pod has no word for being stopped: its processes are gone, its files stay, and nothing starts it. */
  async discard(handle: string, options: Pick<RemoveOptions, 'goneTo'> = {}): Promise<void> {
    const known = readHandle(handle);
    const container = await this.#container(known);
    if (container !== undefined) giveUpDump(container.id);
    if ((await this.#pod(known)) !== undefined) {
      await this.#hold(known);
      await endWhereItStands(container);
      if (container !== undefined) await requireEnded(known.name, container);
    }
    await this.#owners.left(known, options.goneTo);
  }

  async adopt(handle: string): Promise<void> {
    const known = readHandle(handle);
    const container = await this.#container(known);
    if (container !== undefined) await unlinkRuntime(container.id);
    if (known.key !== undefined) await removeGate(known.key);
  }

  async settle(handle: string): Promise<void> {
    const known = readHandle(handle);
    await this.adopt(handle);
    const container = await this.#container(known);
    if (container !== undefined) await this.#area.remove(container.id);
    if (known.key === undefined) return;
    await removePlace(known.key);
    await this.#owners.returned(known, await this.#records.read(known.key));
    await this.#records.remove(known.key);
  }

  startFresh(handle: string): Promise<void> {
    return this.start(handle);
  }

  /** Kubernetes begins a container anew from its image and its volumes; what else it wrote ends with it. */
  async restartFresh(handle: string): Promise<void> {
    const container = await this.#container(readHandle(handle));
    await this.adopt(handle);
    if (container !== undefined) await this.#area.remove(container.id);
    await endWhereItStands(container);
    await this.start(handle);
  }

  async stop(handle: string): Promise<void> {
    const { name, namespace } = readHandle(handle);
    throw new UmsError('UMS_E_ENGINE', {
      message: `Kubernetes has no way to stop pod ${name} without deleting it`,
      fault: 'user',
      state: 'Nothing was changed.',
      mend: `kubectl --namespace ${namespace} delete pod ${name}`,
    });
  }

  /** The kubelet starts what may be started; it is only waited for. */
  async start(handle: string): Promise<void> {
    const known = readHandle(handle);
    if (known.uid !== undefined) await release(known.uid);
    const runs = async (): Promise<boolean> => {
      const pod = await this.#pod(known);
      return pod !== undefined && (await this.#seen(pod)).state === 'running';
    };
    if (await poll(runs, START_LIMIT_MS, 250)) return;
    throw new UmsError('UMS_E_ENGINE', {
      message: `The kubelet does not start pod ${known.name}`,
      fault: 'ums',
      mend: `kubectl --namespace ${known.namespace} describe pod ${known.name}`,
    });
  }

  async #require(handle: string, ...wanted: ServiceState[]): Promise<ServiceState> {
    const { name } = readHandle(handle);
    const state = await this.state(handle);
    if (wanted.includes(state)) return state;
    throw state === 'absent' ? errors.gone(name) : errors.notRunning(name, state);
  }
}

export function createKubernetesDriver(options: DriverOptions): Driver {
  return new KubernetesDriver(options);
}
