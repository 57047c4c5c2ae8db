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
import { poll } from '../oci/cgroup.ts';
import type { RuntimeContainer } from '../oci/container.ts';
import { giveUpDump, waitForDumps } from '../oci/dump.ts';
import { EngineRestore } from '../oci/engine-restore.ts';
import { saveLog } from '../oci/log-file.ts';
import { CreateRecords } from '../oci/records.ts';
import { RestoreArea } from '../oci/restore-area.ts';
import { descriptorsOf, initPid } from '../oci/runtime.ts';
import { sweepRuntimeLinks, unlinkRuntime } from '../oci/runtime-links.ts';
import { stateSeen } from '../oci/seen.ts';
import { Throttle } from '../oci/throttle.ts';
import type { Specification } from '../specification.ts';
import { Cluster } from './api.ts';
import { bringToGate, logHere, podName, restoreAll } from './arrival.ts';
import { errors } from './errors.ts';
import { canCreate } from './can-create.ts';
import {
  claimsFor,
  containersOf,
  createPlace,
  type CreateRecord,
  createRecordSchema,
  emptyClaims,
  findPlace,
  forget,
  removePlace,
} from './create.ts';
import { refuseUsedClaims } from './claims.ts';
import { claimPaths, imageNames, nameOf, sourceTrees, specificationOf } from './describe.ts';
import { endWhereItStands, leaveGate, requireEnded } from './ending.ts';
import { fingerprintOf } from './fingerprint.ts';
import { removeGate } from './gate.ts';
import { afterAll, dumpAll, partOf, prepareAll, processesIn, setAllFrozen, stateOfAll, thawAll } from './group.ts';
import { type PodHandle, readHandle, writeHandle } from './handle.ts';
import { hold, release } from './hold.ts';
import { describeImages, exportImage, hasImage, importImage } from './images.ts';
import { Known } from './known.ts';
import { unmuteLoopback } from './loopback.ts';
import { lossesOf, refuseShared, refuseUnmovable } from './losses.ts';
import { MIGRATION_ANNOTATION } from './manifest.ts';
import { bundleOf, containerIds, runtimeContainer } from './node.ts';
import { ownerOf } from './owner.ts';
import { Owners } from './owners.ts';
import type { Pod } from './schema.ts';
import { setRecordSchema } from './stateful-set.ts';

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
  readonly #owners: Owners;
  readonly #area: RestoreArea;
  readonly #restores: EngineRestore;
  readonly #throttle: Throttle;
  readonly #records: CreateRecords<CreateRecord>;
  readonly #known: Known;

  constructor(options: DriverOptions) {
    this.#area = new RestoreArea(options.runDir);
    this.#restores = new EngineRestore(this.#area);
    this.#throttle = new Throttle(options.runDir);
    this.#records = new CreateRecords(options.stateDir, 'kubernetes', createRecordSchema);
    this.#known = new Known(this.#cluster, this.#records);
    this.#owners = new Owners(
      this.#cluster,
      new CreateRecords(options.stateDir, 'kubernetes-stateful-sets', setRecordSchema),
    );
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
      image: imageNames(pod).join(', '),
      ports: pod.spec.containers
        .flatMap(({ ports }) => ports)
        .flatMap(({ hostPort, containerPort, protocol }) =>
          hostPort === undefined || hostPort === 0 ? [] : [`${hostPort}->${containerPort}/${protocol.toLowerCase()}`],
        ),
      created_at: pod.metadata.creationTimestamp,
    };
  }

  async #seen(pod: Pod): Promise<{ containers: RuntimeContainer[]; state: ServiceState; pid: number }> {
    const each = containerIds(pod).map((id) => (id === undefined ? undefined : runtimeContainer(id)));
    const states = await Promise.all(
      each.map(async (one) => (one === undefined ? 'created' : ((await stateSeen(this.#area, one)) ?? 'stopped'))),
    );
    const [first] = each;
    const pid = first === undefined ? 0 : ((await initPid(first.root, first.id)) ?? 0);
    return { containers: each.filter((one) => one !== undefined), state: stateOfAll(states), pid };
  }

  async describe(reference: string): Promise<ServiceDescription> {
    if (!Cluster.isInstalled()) throw errors.unknown(reference);
    const pods = await this.#podsHere();
    const summaries = await Promise.all(pods.map((pod) => this.#summaryOf(pod)));
    const summary = errors.find(reference, summaries);
    const pod = pods[summaries.indexOf(summary)];
    if (pod === undefined) throw errors.unknown(reference);
    refuseUnmovable(pod);
    const { containers } = await this.#seen(pod);
    const [first, ...others] = containers;
    const bundles = (await Promise.all(containers.map(({ id }) => bundleOf(id)))).filter((one) => one !== undefined);
    if (first === undefined || bundles.length < pod.spec.containers.length) {
      throw errors.notRunning(summary.name, summary.state);
    }
    refuseShared(summary.name, await Promise.all(containers.map(processesIn)));
    await this.#requireRight(pod);
    await refuseUsedClaims(await this.#cluster.api(), pod);
    const owner = await ownerOf(await this.#cluster.api(), pod);
    const { namespace, name, uid } = podName(pod);
    const handle: PodHandle = { v: 1, engine: 'kubernetes', namespace, name, uid, container: first.id };
    if (others.length > 0) handle.more = others.map(({ id }) => id);
    if (owner !== undefined) handle.owner = owner;
    const claims = bundles[0] === undefined ? {} : claimPaths(pod, bundles[0]);
    if (Object.keys(claims).length > 0) handle.claims = claims;
    return {
      summary,
      specification: specificationOf(pod, await describeImages(imageNames(pod)), owner),
      handle: writeHandle(handle),
      trees: sourceTrees(pod, bundles),
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

  async state(handle: string): Promise<ServiceState> {
    const known = readHandle(handle);
    const containers = await this.#known.containers(known);
    const seen = await Promise.all(containers.map((one) => stateSeen(this.#area, one)));
    const states = seen.filter((state) => state !== undefined);
    const ended = states.length < seen.length;
    // Containers come one by one, and until the last has come there is no service.
    const awaited = await this.#known.isAwaited(known, containers.length);
    if (awaited && !ended) return 'created';
    if (containers.length > 0 && !ended) return stateOfAll(states);
    if (containers.length === 0 && known.key !== undefined) return 'absent';
    return (await this.#known.pod(known)) === undefined ? 'absent' : 'stopped';
  }

  async processes(handle: string): Promise<number[]> {
    return (await Promise.all((await this.#known.containers(readHandle(handle))).map(processesIn))).flat();
  }

  async address(handle: string): Promise<string | undefined> {
    const address = (await this.#known.pod(readHandle(handle)))?.status?.podIP;
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
    if (!(await setAllFrozen(await this.#known.requireContainers(known), true, FREEZE_LIMIT_MS))) {
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
    const containers = await this.#known.requireContainers(known);
    for (const { id } of containers) {
      await waitForDumps(id, UNTRACED_LIMIT_MS);
      await this.#throttle.set(id, [], undefined);
    }
    if (known.uid !== undefined) await release(known.uid);
    await thawAll(this.#area, containers, { untraced_ms: UNTRACED_LIMIT_MS, thaw_ms: THAW_LIMIT_MS });
    await this.#require(handle, 'running');
  }

  async prepareCheckpoint(handle: string, request: CheckpointRequest): Promise<void> {
    const state = await this.#require(handle, 'running', 'frozen');
    if (state === 'running') await this.#owners.hold(readHandle(handle));
    await prepareAll(await this.#known.requireContainers(readHandle(handle)), request);
  }

  /** Several containers have several, and their restore is not prepared. */
  async descriptors(handle: string): Promise<string | undefined> {
    const [first, ...others] = await this.#known.requireContainers(readHandle(handle));
    return first === undefined || others.length > 0 ? undefined : await descriptorsOf(first.root, first.id);
  }

  async checkpoint(handle: string, request: CheckpointRequest): Promise<void> {
    const known = readHandle(handle);
    const containers = await this.#known.requireContainers(known);
    await this.#require(handle, 'frozen');
    for (const { id } of containers) await this.#throttle.set(id, [], undefined);
    refuseShared(known.name, await Promise.all(containers.map(processesIn)));
    // Both wait for others, and the service stands still meanwhile.
    const [dumped, saved] = await Promise.allSettled([dumpAll(containers, request), this.#saveLogs(known, request)]);
    if (dumped.status === 'rejected') throw dumped.reason;
    if (saved.status === 'rejected') throw saved.reason;
  }

  async #saveLogs(handle: PodHandle, request: CheckpointRequest): Promise<void> {
    const pod = await this.#known.pod(handle);
    if (pod === undefined) return;
    const { containers } = pod.spec;
    for (const [at, { name }] of containers.entries()) {
      const log = await logHere(podName(pod), name);
      if (log !== undefined) await saveLog(log, (await partOf(request, at, containers.length)).imagesDir);
    }
  }

  afterCheckpoint(handle: string): AfterCheckpoint {
    const { container, more } = readHandle(handle);
    return afterAll(container === undefined ? [] : [container, ...(more ?? [])]);
  }

  /** The pod comes as far as it can without its processes: network, volumes, sandbox. */
  async prepareRestore(handle: string): Promise<void> {
    if ((await this.state(handle)) !== 'created') return;
    const { key, name } = readHandle(handle);
    const record = await this.#known.record(key);
    if (record === undefined || key === undefined) throw errors.gone(name);
    const come = containersOf(record).length;
    const { bundle } = await bringToGate(this.#cluster, record, key, come);
    // While the service still runs at the source.
    if (come === 0) await claimsFor(record, bundle);
  }

  async restore(handle: string, request: RestoreRequest): Promise<void> {
    const known = readHandle(handle);
    if ((await this.#require(handle, 'created', 'restored')) === 'restored') return;
    const { key } = known;
    const record = await this.#known.record(key);
    if (record === undefined || key === undefined) throw errors.gone(known.name);
    const means = { cluster: this.#cluster, area: this.#area, restores: this.#restores, records: this.#records };
    await restoreAll(means, record, key, request);
  }

  async resume(handle: string): Promise<void> {
    const known = readHandle(handle);
    const containers = await this.#known.requireContainers(known);
    if ((await this.#require(handle, 'running', 'restored')) === 'running') return;
    const [first, ...others] = containers;
    if (first !== undefined && others.length > 0) await unmuteLoopback((await initPid(first.root, first.id)) ?? 0);
    if (await setAllFrozen(containers, false, THAW_LIMIT_MS)) return;
    throw new UmsError('UMS_E_RESTORE', {
      message: `${known.name} was let go but does not run`,
      fault: 'destination',
      mend: `See kubectl --namespace ${known.namespace} logs ${known.name}.`,
    });
  }

  async throttle(handle: string, share: number | undefined): Promise<boolean> {
    const containers = await this.#known.requireContainers(readHandle(handle));
    const set = containers.map(async (one) => this.#throttle.set(one.id, await processesIn(one), share));
    return (await Promise.all(set)).every((done) => done);
  }

  async remove(handle: string, { goneTo, volumes, keep = [] }: RemoveOptions): Promise<void> {
    const known = readHandle(handle);
    const { key } = known;
    const containers = await this.#known.containers(known);
    for (const { id } of containers) giveUpDump(id);
    const pod = await this.#known.pod(known);
    await Promise.all(containers.map(endWhereItStands));
    if (pod !== undefined) {
      // As long as the pod is there they are mounted for it, and for nobody else.
      const claims = key === undefined ? known.claims : (await this.#records.read(key))?.claims;
      if (volumes) await emptyClaims(claims ?? {}, keep);
      const { namespace, name, uid } = podName(pod);
      await (await this.#cluster.api()).deletePod(namespace, name, uid);
    }
    if (key !== undefined && pod !== undefined) await leaveGate(key, podName(pod));
    for (const container of containers) {
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
    const containers = await this.#known.containers(known);
    for (const { id } of containers) giveUpDump(id);
    if ((await this.#known.pod(known)) !== undefined) {
      await this.#hold(known);
      await Promise.all(containers.map(endWhereItStands));
      for (const container of containers) await requireEnded(known.name, container);
    }
    await this.#owners.left(known, options.goneTo);
  }

  async adopt(handle: string): Promise<void> {
    const known = readHandle(handle);
    for (const { id } of await this.#known.containers(known)) await unlinkRuntime(id);
    if (known.key !== undefined) await removeGate(known.key);
  }

  async settle(handle: string): Promise<void> {
    const known = readHandle(handle);
    await this.adopt(handle);
    for (const { id } of await this.#known.containers(known)) await this.#area.remove(id);
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
    const containers = await this.#known.containers(readHandle(handle));
    await this.adopt(handle);
    for (const { id } of containers) await this.#area.remove(id);
    await Promise.all(containers.map(endWhereItStands));
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
      const pod = await this.#known.pod(known);
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
