import { readFile } from 'node:fs/promises';
import { UmsError } from '#src/telemetry/errors.ts';
import type {
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
  Tree,
} from '../contract.ts';
import { type Freezer, freezerOf, isFrozen, isMissing, poll, processesOf, waitUntilUntraced } from '../oci/cgroup.ts';
import { dumpFrozen, waitForDumps } from '../oci/dump.ts';
import { RestoreArea } from '../oci/restore-area.ts';
import { CreateRecords } from '../oci/records.ts';
import { findProgram, initPid, RUNC_ROOT, runcVersion, waitsToBegin } from '../oci/runtime.ts';
import type { Specification } from '../specification.ts';
import { canCreate } from './can-create.ts';
import { change, engineError, inspectContainer, inspectVolume, listContainers, podmanVersion } from './cli.ts';
import {
  createContainer,
  findContainer,
  hasOwnShm,
  removeVolumes,
  shmTree,
  undoRecord,
  unique,
  unmountShm,
  upperTree,
} from './create.ts';
import { specificationOf, type Surroundings } from './describe.ts';
import { ambiguous, gone, notRunning, unknown } from './errors.ts';
import { type PodmanHandle, readHandle, writeHandle } from './handle.ts';
import { describeImage, exportImage, hasImage, importImage } from './images.ts';
import { endFrozen } from './ending.ts';
import { lossesOf, refuseUnmovable } from './losses.ts';
import { type CreateRecord, createRecordSchema } from './records.ts';
import { restoreContainer, saveLog } from './restore.ts';
import { type Inspect, ociConfigSchema, type Volume } from './schema.ts';

/** Milliseconds for CRIU to let go of tasks after its page server went away. */
const UNTRACED_LIMIT_MS = 60_000;
const CREATED_MAX = 64;
const THAW_LIMIT_MS = 5000;

export class PodmanDriver implements Driver {
  readonly engine = 'podman';
  readonly #area: RestoreArea;
  readonly #records: CreateRecords<CreateRecord>;
  /**
   * What Podman said of containers made here and not started yet: a restore needs it while the service stands still, and
   * nothing about a container that has never run changes, short of its removal, at which the restore fails by itself.
   */
  readonly #created = new Map<string, Inspect>();

  constructor(options: DriverOptions) {
    this.#area = new RestoreArea(options.runDir);
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
        state: await this.#stateOf(container.Id, container.State, container.Pid),
        image: container.Image,
        pid: container.Pid,
        ports: container.Ports.map(
          (port) =>
            `${port.host_ip === '' ? '0.0.0.0' : port.host_ip}:${port.host_port}->${port.container_port}/${port.protocol}`,
        ),
        created_at: new Date(container.Created * 1000).toISOString(),
      });
    }
    return summaries;
  }

  async describe(reference: string): Promise<ServiceDescription> {
    const matches = (await this.list()).filter(
      (service) => reference !== '' && (service.name === reference || service.id.startsWith(reference)),
    );
    const exact = matches.find((service) => service.name === reference || service.id === reference);
    if (exact === undefined && matches.length > 1) throw ambiguous(reference, matches);
    const summary = exact ?? matches[0];
    const inspect = summary === undefined ? undefined : await inspectContainer(summary.id);
    if (summary === undefined || inspect === undefined) throw unknown(reference);
    const volumes = await volumesOf(inspect);
    refuseUnmovable(inspect, volumes);
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
    const seen = await this.#stateSeen(readHandle(handle).id);
    if (seen !== undefined) return seen;
    const inspect = await inspectContainer(readHandle(handle).id);
    if (inspect === undefined) return 'absent';
    return await this.#stateOf(inspect.Id, inspect.State.Status, inspect.State.Pid);
  }

  /**
   * The state of a container that has processes, from the kernel and runc's own records: Podman's answer takes fifty
   * milliseconds, and this is asked while the service stands still. Undefined when only Podman can tell.
   */
  async #stateSeen(id: string): Promise<ServiceState | undefined> {
    const freezer = await this.#freezerSeen(id);
    if (freezer === undefined) return undefined;
    const arriving = await this.#area.exists(id);
    if (await isFrozen(freezer)) return arriving ? 'restored' : 'frozen';
    if (arriving) return 'running';
    return (await waitsToBegin(RUNC_ROOT, id)) ? undefined : 'running';
  }

  /** Podman names the group after the container, so a process number that was used again is not taken for it. */
  async #freezerSeen(id: string): Promise<Freezer | undefined> {
    const pid = await initPid(RUNC_ROOT, id);
    const freezer = pid === undefined ? undefined : await freezerOf(pid);
    return freezer?.directory.includes(id) === true ? freezer : undefined;
  }

  /** Podman's word for where the container is in its life, the kernel's for whether its processes run. */
  async #stateOf(id: string, status: string, pid: number): Promise<ServiceState> {
    const freezer = pid > 0 ? await freezerOf(pid) : undefined;
    switch (status) {
      case 'created':
      case 'configured':
        return 'created';
      case 'initialized':
        if (freezer === undefined) return 'created';
        if (await isFrozen(freezer)) return 'restored';
        // A start that was cut short after the processes were let go; otherwise runc waits to begin.
        return (await this.#area.exists(id)) ? 'running' : 'created';
      case 'running':
      case 'paused':
      case 'stopping':
        if (freezer === undefined) return 'stopped';
        return (await isFrozen(freezer)) ? 'frozen' : 'running';
      default:
        return 'stopped';
    }
  }

  async processes(handle: string): Promise<number[]> {
    const { id } = readHandle(handle);
    const seen = await this.#freezerSeen(id);
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

  exportImage(specification: Specification, sink: NodeJS.WritableStream, signal: AbortSignal): Promise<void> {
    return exportImage(specification, sink, signal);
  }

  importImage(specification: Specification, source: NodeJS.ReadableStream, signal: AbortSignal): Promise<void> {
    return importImage(specification, source, signal);
  }

  async create(specification: Specification, key: string): Promise<CreatedService> {
    const created = await createContainer(this.#records, specification, key);
    const inspect = await inspectContainer(created.id);
    if (this.#created.size >= CREATED_MAX) this.#created.clear();
    if (inspect !== undefined) this.#created.set(created.id, inspect);
    return created;
  }

  findCreated(specification: Specification, key: string): Promise<CreatedService | undefined> {
    return findContainer(this.#records, specification, key);
  }

  async freeze(handle: string): Promise<void> {
    const { id, name } = readHandle(handle);
    const state = await this.state(handle);
    if (state === 'frozen') return;
    if (state === 'absent') throw gone(name);
    if (state !== 'running') throw notRunning(name, state);
    try {
      await change(['pause', id]);
    } catch (error) {
      if ((await this.state(handle)) === 'frozen') return;
      throw engineError(error, `freeze ${name}`);
    }
  }

  async thaw(handle: string): Promise<void> {
    await waitForDumps(readHandle(handle).id, UNTRACED_LIMIT_MS);
    const { inspect, state } = await this.#require(handle);
    if (state === 'running') return;
    if (state !== 'frozen') throw notRunning(inspect.Name, state);
    await waitUntilUntraced(await this.processes(handle), UNTRACED_LIMIT_MS);
    try {
      await change(['unpause', inspect.Id]);
    } catch (error) {
      if ((await this.state(handle)) === 'running') return;
      throw engineError(error, `thaw ${inspect.Name}`);
    }
  }

  async checkpoint(handle: string, request: CheckpointRequest): Promise<void> {
    const { id, name } = readHandle(handle);
    const state = await this.state(handle);
    if (state === 'absent') throw gone(name);
    if (state !== 'frozen') throw notRunning(name, state);
    // Both wait for others, and the service stands still meanwhile.
    const [dumped, saved] = await Promise.allSettled([
      dumpFrozen(RUNC_ROOT, id, request),
      inspectContainer(id).then((inspect) => (inspect === undefined ? undefined : saveLog(inspect, request.imagesDir))),
    ]);
    if (dumped.status === 'rejected') throw dumped.reason;
    if (saved.status === 'rejected') throw saved.reason;
  }

  async restore(handle: string, request: RestoreRequest): Promise<void> {
    const { id } = readHandle(handle);
    const known = this.#created.get(id);
    this.#created.delete(id);
    if (known !== undefined && (await initPid(RUNC_ROOT, id)) === undefined) {
      return await restoreContainer(known, request, this.#area);
    }
    const { inspect, state } = await this.#require(handle);
    if (state === 'restored') return;
    if (state !== 'created') throw notRunning(inspect.Name, state);
    await restoreContainer(inspect, request, this.#area);
  }

  async resume(handle: string): Promise<void> {
    const { id, name } = readHandle(handle);
    if ((await this.#stateSeen(id)) !== 'restored') {
      const { inspect, state } = await this.#require(handle);
      if (state === 'running' && inspect.State.Status === 'running') return;
      if (state !== 'restored' && state !== 'running') throw notRunning(name, state);
    }
    try {
      await change(['start', id], { env: { CONTAINERS_CONF_OVERRIDE: this.#area.override(id) } });
    } catch (error) {
      throw engineError(error, `let ${name} run`);
    }
    if (!(await poll(async () => (await this.state(handle)) === 'running', THAW_LIMIT_MS, 5))) {
      throw new UmsError('UMS_E_RESTORE', {
        message: `${name} was let go but does not run`,
        fault: 'destination',
        mend: `See podman logs ${name}.`,
      });
    }
  }

  async remove(handle: string, options: { volumes: boolean }): Promise<void> {
    const known = readHandle(handle);
    const inspect = await inspectContainer(known.id);
    const record = known.key === undefined ? undefined : await this.#records.read(known.key);
    const named = inspect === undefined ? [] : namedVolumes(inspect);
    if (inspect !== undefined) await this.#removeContainer(known, inspect);
    await this.#area.remove(known.id);
    // A record is there until the migration is settled: until then removing is undoing.
    if (record !== undefined && known.key !== undefined) {
      await undoRecord(this.#records, known.key, record);
    } else if (options.volumes) {
      await removeVolumes(named);
    }
  }

  async #removeContainer(known: PodmanHandle, inspect: Inspect): Promise<void> {
    await waitUntilUntraced(await this.processes(writeHandle(known)), UNTRACED_LIMIT_MS);
    try {
      await change(['rm', '--force', '--ignore', '--volumes', '--time', '0', inspect.Id]);
    } catch (error) {
      if ((await inspectContainer(inspect.Id)) !== undefined) throw engineError(error, `remove ${inspect.Name}`);
    }
    await unmountShm(inspect);
  }

  async discard(handle: string): Promise<void> {
    const { inspect, state } = await this.#require(handle);
    if (state === 'stopped') return;
    if (state !== 'frozen') throw notRunning(inspect.Name, state);
    const pids = await this.processes(handle);
    await waitUntilUntraced(pids, UNTRACED_LIMIT_MS);
    await endFrozen(inspect, pids);
  }

  async settle(handle: string): Promise<void> {
    const known = readHandle(handle);
    await this.#area.settle(known.id);
    if (known.key !== undefined) await this.#records.remove(known.key);
  }

  startFresh(handle: string): Promise<void> {
    return this.start(handle);
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
    if (inspect === undefined) throw gone(known.name);
    return { inspect, state: await this.#stateOf(inspect.Id, inspect.State.Status, inspect.State.Pid) };
  }
}

export function createPodmanDriver(options: DriverOptions): Driver {
  return new PodmanDriver(options);
}

function sourceTrees(inspect: Inspect): Tree[] {
  return unique([
    upperTree(inspect),
    ...(hasOwnShm(inspect) ? [shmTree(inspect)] : []),
    ...inspect.Mounts.flatMap((mount): Tree[] => {
      if (mount.Type === 'volume') return [{ id: `volume:${mount.Name ?? ''}`, path: mount.Source, kind: 'plain' }];
      return mount.Type === 'bind' ? [{ id: `bind:${mount.Source}`, path: mount.Source, kind: 'plain' }] : [];
    }),
  ]);
}

function namedVolumes(inspect: Inspect): string[] {
  return inspect.Mounts.flatMap((mount) => (mount.Type === 'volume' && mount.Name !== undefined ? [mount.Name] : []));
}

async function volumesOf(inspect: Inspect): Promise<Map<string, Volume>> {
  const volumes = new Map<string, Volume>();
  for (const name of namedVolumes(inspect)) {
    const volume = await inspectVolume(name);
    if (volume !== undefined) volumes.set(name, volume);
  }
  return volumes;
}

async function configOf(inspect: Inspect): Promise<Pick<Surroundings, 'sysctls' | 'devices'>> {
  if (inspect.OCIConfigPath === '') return { sysctls: {}, devices: [] };
  try {
    const { linux } = ociConfigSchema.parse(JSON.parse(await readFile(inspect.OCIConfigPath, 'utf8')));
    return { sysctls: linux?.sysctl ?? {}, devices: (linux?.devices ?? []).map((device) => device.path) };
  } catch (error) {
    // A container that never ran has no configuration yet, and no state to move either.
    if (isMissing(error)) return { sysctls: {}, devices: [] };
    throw error;
  }
}
