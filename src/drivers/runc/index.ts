import { readFile } from 'node:fs/promises';
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
  RestoreRequest,
  ServiceDescription,
  ServiceOutput,
  ServiceState,
  ServiceSummary,
} from '../contract.ts';
import { type Freezer, freezerOf, isFrozen, poll, processesOf, setFrozen, waitUntilUntraced } from '../oci/cgroup.ts';
import { dumpFrozen, afterDump, giveUpDump, prepareDump, waitForDumps } from '../oci/dump.ts';
import { exists } from '../oci/files.ts';
import { killFrozen, requireAllFrozen } from '../oci/frozen.ts';
import { hasDescriptors, PreparedRestores } from '../oci/prepared.ts';
import { CreateRecords } from '../oci/records.ts';
import { RestoreArea } from '../oci/restore-area.ts';
import { descriptorsOf, initPid, requireProgram, RUNC_ROOT, runcVersion, waitsToBegin } from '../oci/runtime.ts';
import { Throttle } from '../oci/throttle.ts';
import type { Specification } from '../specification.ts';
import {
  canCreate,
  createBundle,
  findBundle,
  isMarked,
  isMountPoint,
  removeBundle,
  undoBundle,
  unmark,
} from './bundle.ts';
import { changeRunc, listBundles, runcState, runPiped } from './cli.ts';
import { logPath, networkPath, parseConfig, refuseUnmovable, rootfsOf, specificationOf, treesOf } from './describe.ts';
import { notRunning, readHandle, unknown } from './errors.ts';
import { launch, writeSettings } from './restore.ts';
import { type CreateRecord, createRecordSchema, type Listed, type RuncHandle } from './schema.ts';

const UNTRACED_LIMIT_MS = 60_000;
const FREEZE_LIMIT_MS = 10_000;
const THAW_LIMIT_MS = 5000;
/** Milliseconds that a program has to end after SIGTERM, as engines give it. */
const STOP_LIMIT_MS = 10_000;
const KILL_LIMIT_MS = 20_000;
const START_LIMIT_MS = 60_000;

export class RuncDriver implements Driver {
  readonly engine = 'runc';
  readonly #area: RestoreArea;
  readonly #prepared: PreparedRestores;
  readonly #throttle: Throttle;
  readonly #records: CreateRecords<CreateRecord>;
  readonly #output: ServiceOutput | undefined;

  constructor(options: DriverOptions) {
    this.#area = new RestoreArea(options.runDir);
    this.#prepared = new PreparedRestores(this.#area);
    this.#throttle = new Throttle(options.runDir);
    this.#records = new CreateRecords(options.stateDir, 'runc', createRecordSchema);
    this.#output = options.output;
  }

  async fingerprint(): Promise<EngineFingerprint> {
    const version = await runcVersion();
    if (version !== undefined)
      return { engine: this.engine, available: true, version: version.slice(5), runtime: version };
    return {
      engine: this.engine,
      available: false,
      problem: 'runc is not installed',
      mend: 'apt install runc',
      version: '',
      runtime: '',
    };
  }

  async list(): Promise<ServiceSummary[]> {
    const summaries: ServiceSummary[] = [];
    for (const each of await listBundles()) summaries.push(await this.#summary(each));
    return summaries;
  }

  async #summary(each: Listed): Promise<ServiceSummary> {
    return {
      engine: this.engine,
      id: each.id,
      name: each.id,
      state: await this.#stateOf(each.id, each.status, each.pid),
      image: each.bundle,
      pid: each.status === 'stopped' ? 0 : each.pid,
      ports: [],
      created_at: each.created,
    };
  }

  async describe(reference: string): Promise<ServiceDescription> {
    const all = await listBundles();
    const matches = all.filter((each) => reference !== '' && each.id.startsWith(reference));
    const exact = matches.find((each) => each.id === reference) ?? (matches.length === 1 ? matches[0] : undefined);
    if (exact === undefined)
      throw unknown(
        reference,
        matches.map((each) => each.id),
      );
    const summary = await this.#summary(exact);
    const configText = await readFile(join(exact.bundle, 'config.json'), 'utf8');
    const specification = specificationOf(exact.id, exact.bundle, configText);
    const config = parseConfig(configText, exact.bundle);
    refuseUnmovable(specification, config);
    const handle: RuncHandle = { v: 1, engine: 'runc', id: exact.id, bundle: exact.bundle };
    const losses =
      this.#output === undefined
        ? ['its output, if it is a pipe, goes to ums-output.log in the bundle at the destination']
        : [];
    const rootfs = rootfsOf(config, exact.bundle);
    if (await isMountPoint(rootfs)) {
      losses.push(
        `${rootfs} is a mount: it becomes a plain directory there, and stays here when the service has moved`,
      );
    }
    if (networkPath(config) !== undefined) losses.push('connections that are open are closed');
    return {
      summary,
      specification,
      handle: JSON.stringify(handle),
      trees: treesOf(config, exact.bundle, () => true),
      losses,
    };
  }

  async state(handle: string): Promise<ServiceState> {
    const known = readHandle(handle);
    const freezer = await this.#freezerSeen(known.id);
    if (freezer !== undefined && (await isFrozen(freezer))) {
      return (await this.#area.exists(known.id)) ? 'restored' : 'frozen';
    }
    if (freezer !== undefined && !(await waitsToBegin(RUNC_ROOT, known.id))) return 'running';
    const state = await runcState(known.id);
    if (state !== undefined) return await this.#stateOf(known.id, state.status, state.pid);
    if (!(await exists(join(known.bundle, 'config.json')))) return 'absent';
    // A bundle without processes: made for a migration that has not brought them yet, or left by a host that went down.
    const record = known.key === undefined ? undefined : await this.#records.read(known.key);
    return record === undefined ? 'stopped' : 'created';
  }

  /** From the kernel and runc's own records: runc's answer takes ten milliseconds, and a service may stand still. */
  async #freezerSeen(id: string): Promise<Freezer | undefined> {
    const pid = await initPid(RUNC_ROOT, id);
    return pid === undefined ? undefined : await freezerOf(pid);
  }

  async #stateOf(id: string, status: string, pid: number): Promise<ServiceState> {
    if (status === 'stopped') return 'stopped';
    if (status === 'created') return 'created';
    const freezer = await freezerOf(pid);
    if (freezer === undefined) return 'stopped';
    if (!(await isFrozen(freezer))) return 'running';
    return (await this.#area.exists(id)) ? 'restored' : 'frozen';
  }

  async processes(handle: string): Promise<number[]> {
    const freezer = await this.#freezerSeen(readHandle(handle).id);
    return freezer === undefined ? [] : await processesOf(freezer);
  }

  async address(handle: string): Promise<string | undefined> {
    const { bundle } = readHandle(handle);
    const config = parseConfig(await readFile(join(bundle, 'config.json'), 'utf8'), bundle);
    return config.linux.namespaces.some((namespace) => namespace.type === 'network') ? undefined : '127.0.0.1';
  }

  canCreate(specification: Specification): Promise<Finding[]> {
    return canCreate(specification);
  }

  /** A bundle has no image: its root file system travels as a tree. */
  hasImage(): Promise<boolean> {
    return Promise.resolve(true);
  }

  imageLayers(): Promise<string[]> {
    return Promise.resolve([]);
  }

  exportImage(): Promise<void> {
    return Promise.resolve();
  }

  importImage(): Promise<void> {
    return Promise.resolve();
  }

  create(specification: Specification, key: string): Promise<CreatedService> {
    return createBundle(this.#records, specification, key);
  }

  findCreated(specification: Specification, key: string): Promise<CreatedService | undefined> {
    return findBundle(this.#records, specification, key);
  }

  async freeze(handle: string): Promise<void> {
    const { id } = readHandle(handle);
    const state = await this.state(handle);
    if (state === 'frozen') return;
    if (state !== 'running') throw notRunning(id, state);
    const freezer = await this.#freezerSeen(id);
    if (freezer !== undefined && (await setFrozen(freezer, true, FREEZE_LIMIT_MS))) return;
    throw new UmsError('UMS_E_ENGINE', { message: `${id} could not be frozen`, fault: 'source' });
  }

  async thaw(handle: string): Promise<void> {
    const { id } = readHandle(handle);
    await waitForDumps(id, UNTRACED_LIMIT_MS);
    await this.#throttle.set(id, [], undefined);
    const state = await this.state(handle);
    if (state === 'running') return;
    if (state !== 'frozen') throw notRunning(id, state);
    await waitUntilUntraced(await this.processes(handle), UNTRACED_LIMIT_MS);
    const freezer = await this.#freezerSeen(id);
    if (freezer !== undefined && (await setFrozen(freezer, false, THAW_LIMIT_MS))) return;
    throw new UmsError('UMS_E_ENGINE', { message: `${id} could not be thawed`, fault: 'source' });
  }

  async prepareCheckpoint(handle: string, request: CheckpointRequest): Promise<void> {
    const { id } = readHandle(handle);
    const state = await this.state(handle);
    if (state !== 'running' && state !== 'frozen') throw notRunning(id, state);
    await prepareDump({ root: RUNC_ROOT, id }, request, await this.processes(handle));
  }

  descriptors(handle: string): Promise<string | undefined> {
    return descriptorsOf(RUNC_ROOT, readHandle(handle).id);
  }

  async checkpoint(handle: string, request: CheckpointRequest): Promise<void> {
    const { id } = readHandle(handle);
    const state = await this.state(handle);
    if (state !== 'frozen') throw notRunning(id, state);
    await this.#throttle.set(id, [], undefined);
    await dumpFrozen({ root: RUNC_ROOT, id }, request, await this.processes(handle));
  }

  afterCheckpoint(handle: string): AfterCheckpoint {
    return afterDump(readHandle(handle).id);
  }

  async prepareRestore(handle: string, request: RestoreRequest): Promise<void> {
    const { id, bundle } = readHandle(handle);
    if (await this.#prepared.has(id, request)) return;
    const state = await this.state(handle);
    if (state !== 'created') throw notRunning(id, state);
    await this.#prepared.giveUp(id);
    if (!(await hasDescriptors(request))) return;
    await writeSettings(this.#area, { id, bundle, request }, true);
    await this.#prepared.start(id, request, () =>
      launch(this.#area, { id, bundle, request, output: this.#outputOf(bundle) }),
    );
  }

  async restore(handle: string, request: RestoreRequest): Promise<void> {
    const { id, bundle } = readHandle(handle);
    // What waits at its gate has no processes yet, and runc's own answer would take ten milliseconds.
    const waits = await this.#prepared.has(id, request);
    const state = waits ? 'created' : await this.state(handle);
    if (state === 'restored') return;
    if (state !== 'created') throw notRunning(id, state);
    if (!waits || !(await this.#prepared.finish(id))) {
      await this.#prepared.giveUp(id);
      await writeSettings(this.#area, { id, bundle, request }, false);
      await launch(this.#area, { id, bundle, request, output: this.#outputOf(bundle) });
    }
    await requireAllFrozen((await initPid(RUNC_ROOT, id)) ?? 0, request.workDir);
  }

  async resume(handle: string): Promise<void> {
    const { id } = readHandle(handle);
    const state = await this.state(handle);
    if (state === 'running') return;
    if (state !== 'restored') throw notRunning(id, state);
    const freezer = await this.#freezerSeen(id);
    if (freezer !== undefined && (await setFrozen(freezer, false, THAW_LIMIT_MS))) return;
    throw new UmsError('UMS_E_RESTORE', {
      message: `${id} was let go but does not run`,
      fault: 'destination',
      mend: `See runc state ${id}.`,
    });
  }

  async throttle(handle: string, share: number | undefined): Promise<boolean> {
    return await this.#throttle.set(readHandle(handle).id, await this.processes(handle), share);
  }

  async remove(handle: string, options: { volumes: boolean }): Promise<void> {
    const known = readHandle(handle);
    giveUpDump(known.id);
    await this.#throttle.set(known.id, [], undefined);
    if (known.key === undefined) {
      await this.#delete(handle);
      await this.#area.remove(known.id);
      if (options.volumes) await removeBundle(known.bundle);
      return;
    }
    // An id of runc's can be used again: without the record nothing here is this migration's any more.
    const record = await this.#records.read(known.key);
    if (record === undefined || !(await isMarked(known.bundle, known.key))) {
      if (record !== undefined) await undoBundle(this.#records, known.key, record);
      return;
    }
    await this.#prepared.giveUp(known.id);
    await this.#delete(handle);
    await this.#area.remove(known.id);
    await undoBundle(this.#records, known.key, record);
  }

  #outputOf(bundle: string): ServiceOutput {
    return this.#output ?? { out: logPath(bundle), err: logPath(bundle) };
  }

  /** Takes the container out of runc's list, without a frozen one running again. */
  async #delete(handle: string): Promise<void> {
    const { id } = readHandle(handle);
    if (!(await this.#endFrozen(handle))) {
      const state = await runcState(id);
      if (state === undefined) return;
      await this.#kill(handle, state.pid);
    }
    await changeRunc(['delete', '--force', id], `delete ${id}`);
  }

  /** True when all that was frozen has ended, without asking runc. */
  async #endFrozen(handle: string): Promise<boolean> {
    const freezer = await this.#freezerSeen(readHandle(handle).id);
    if (freezer === undefined || !(await isFrozen(freezer))) return false;
    const pids = await processesOf(freezer);
    await waitUntilUntraced(pids, UNTRACED_LIMIT_MS);
    return await killFrozen(freezer, pids);
  }

  async #kill(handle: string, pid: number): Promise<void> {
    if (await this.#endFrozen(handle)) return;
    await waitUntilUntraced(await this.processes(handle), UNTRACED_LIMIT_MS);
    const freezer = pid === 0 ? undefined : await freezerOf(pid);
    const { id } = readHandle(handle);
    if (freezer === undefined || (await runcState(id))?.status === 'stopped') return;
    // It may end between the question and the kill, which then fails; what counts is that it has ended.
    let failure: unknown;
    await changeRunc(['kill', id, 'KILL'], `kill ${id}`).catch((error: unknown) => {
      failure = error;
    });
    const stopped = async () => ((await runcState(id))?.status ?? 'stopped') === 'stopped';
    if (await poll(stopped, KILL_LIMIT_MS, 20)) return;
    throw failure ?? new UmsError('UMS_E_TIMEOUT', { message: `${id} does not end`, fault: 'service' });
  }

  async discard(handle: string): Promise<void> {
    const { id } = readHandle(handle);
    giveUpDump(id);
    const known = await runcState(id);
    if (known !== undefined) await this.#kill(handle, known.pid);
  }

  /** Nobody but a person starts a bundle again, and by its own configuration. */
  async adopt(): Promise<void> {}

  async settle(handle: string): Promise<void> {
    const known = readHandle(handle);
    // Nobody holds the override's path here, so nothing of it needs to stay.
    await this.#area.remove(known.id);
    if (known.key === undefined) return;
    await unmark(known.bundle);
    await this.#records.remove(known.key);
  }

  startFresh(handle: string): Promise<void> {
    return this.start(handle);
  }

  async restartFresh(handle: string): Promise<void> {
    const { id } = readHandle(handle);
    await this.#area.remove(id);
    await this.#kill(handle, (await runcState(id))?.pid ?? 0);
    await this.start(handle);
  }

  async stop(handle: string): Promise<void> {
    const { id } = readHandle(handle);
    const state = await this.state(handle);
    if (state === 'stopped' || state === 'created') return;
    if (state !== 'running') throw notRunning(id, state);
    await changeRunc(['kill', id, 'TERM'], `stop ${id}`);
    const stopped = async () => (await this.state(handle)) === 'stopped';
    if (await poll(stopped, STOP_LIMIT_MS, 50)) return;
    await this.#kill(handle, (await runcState(id))?.pid ?? 0);
  }

  async start(handle: string): Promise<void> {
    const { id, bundle } = readHandle(handle);
    if ((await this.state(handle)) === 'running') return;
    if ((await runcState(id)) !== undefined) await changeRunc(['delete', id], `clean up ${id}`);
    const runc = await requireProgram('runc');
    await runPiped(
      runc,
      ['--root', RUNC_ROOT, 'run', '--detach', '--bundle', bundle, id],
      this.#outputOf(bundle),
      START_LIMIT_MS,
    );
  }
}

export function createRuncDriver(options: DriverOptions): Driver {
  return new RuncDriver(options);
}
