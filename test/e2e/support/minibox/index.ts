import { randomUUID } from 'node:crypto';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { criuVersion } from '#src/checkpoint/criu.ts';
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
  Tree,
} from '#src/drivers/contract.ts';
import { isFrozen, processesOf, setFrozen, waitUntilUntraced } from '#src/drivers/oci/cgroup.ts';
import { exists } from '#src/drivers/oci/files.ts';
import { findingOf } from '#src/drivers/oci/findings.ts';
import { killFrozen, requireAllFrozen } from '#src/drivers/oci/frozen.ts';
import { CreateRecords } from '#src/drivers/oci/records.ts';
import { RestoreArea } from '#src/drivers/oci/restore-area.ts';
import { requireProgram } from '#src/drivers/oci/runtime.ts';
import { refuseLazy } from '#src/drivers/oci/service-errors.ts';
import type { Specification } from '#src/drivers/specification.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import {
  type Box,
  boxPath,
  changeBox,
  draftPath,
  errors,
  groupOf,
  isHere,
  listBoxes,
  rootfsOf,
  startedMark,
} from './cli.ts';
import { dump, firstOf, isCriuAtWork, ownGroup, restore, waitForCriu } from './criu.ts';
import { specificationOf } from './describe.ts';
import { type CreateRecord, createRecordSchema, type MiniboxHandle, readHandle, writeHandle } from './handle.ts';

const UNTRACED_LIMIT_MS = 60_000;
const FREEZE_LIMIT_MS = 10_000;
const THAW_LIMIT_MS = 5000;

/**
 * The boxes of minibox (minibox.sh), by the contract of src/drivers: an engine without an OCI runtime, so this driver starts
 * CRIU by itself. It declares what it lacks: lazy dumps, and with them every technique but cold; it prepares nothing before
 * the freeze, throttles nothing, and has no images.
 */
export class MiniboxDriver implements Driver {
  readonly engine = 'x-minibox';
  readonly whyNotLazy = 'its driver starts CRIU by itself, which dumps and restores a box as a whole';
  readonly #area: RestoreArea;
  readonly #records: CreateRecords<CreateRecord>;

  constructor(options: DriverOptions) {
    this.#area = new RestoreArea(options.runDir);
    this.#records = new CreateRecords(options.stateDir, this.engine, createRecordSchema);
  }

  async fingerprint(): Promise<EngineFingerprint> {
    const version = await criuVersion();
    const base = { engine: this.engine, version: '1', runtime: `criu ${version ?? ''}` } as const;
    if (version !== undefined) return { ...base, available: true };
    return { ...base, available: false, problem: 'criu is not installed', mend: 'apt install criu' };
  }

  async list(): Promise<ServiceSummary[]> {
    return await Promise.all((await listBoxes()).map((box) => this.#summaryOf(box)));
  }

  async #summaryOf(box: Box): Promise<ServiceSummary> {
    return {
      engine: this.engine,
      id: box.id,
      name: box.name,
      state: await this.#stateOf(box),
      image: rootfsOf(box.name),
      pid: firstOf(await processesOf(groupOf(box.name))) ?? 0,
      ports: [],
      created_at: box.createdAt,
    };
  }

  async describe(reference: string): Promise<ServiceDescription> {
    const summary = errors.find(reference, await this.list());
    return {
      summary,
      specification: await specificationOf(summary.name),
      handle: writeHandle(summary),
      trees: treesOf(summary.name),
      losses: ['connections that are open are closed'],
    };
  }

  async state(handle: string): Promise<ServiceState> {
    const known = readHandle(handle);
    return isHere(known) ? await this.#stateOf(known) : 'absent';
  }

  /** Of a box that is there. minibox is not asked: the kernel knows what runs, and answers in microseconds. */
  async #stateOf({ id, name }: { id: string; name: string }): Promise<ServiceState> {
    const group = groupOf(name);
    const arriving = await this.#area.exists(id);
    if ((await processesOf(group)).length > 0) {
      if (await isFrozen(group)) return arriving ? 'restored' : 'frozen';
      // CRIU is in the group, too, until all are there and stand still.
      return arriving && (await isCriuAtWork(name)) ? 'created' : 'running';
    }
    return (await exists(startedMark(name))) ? 'stopped' : 'created';
  }

  async processes(handle: string): Promise<number[]> {
    const known = readHandle(handle);
    return isHere(known) ? await processesOf(groupOf(known.name)) : [];
  }

  /** Boxes have the network of the host. */
  address(handle: string): Promise<string | undefined> {
    readHandle(handle);
    return Promise.resolve('127.0.0.1');
  }

  async canCreate({ name }: Specification): Promise<Finding[]> {
    if (!(await exists(boxPath(name)))) return [];
    const [what, why] = [`A box ${name} exists here`, 'The service keeps its name.'];
    return [findingOf('error', 'name.taken', what, why, `minibox rm ${name}, if nobody needs it`)];
  }

  /** A box has no image: its root file system travels as a tree. */
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

  async create(specification: Specification, key: string): Promise<CreatedService> {
    const done = await this.findCreated(specification, key);
    if (done !== undefined) return done;
    const { name, env, entrypoint = [], command } = specification;
    if (await exists(boxPath(name))) throw errors.nameTaken(name);
    // The id is chosen here, so that whatever happens next a box that bears it is the one of this migration.
    const record: CreateRecord = { v: 1, id: randomUUID(), name };
    await this.#records.write(key, record);
    const variables = env.flatMap((each) => ['--env', each]);
    try {
      await changeBox(['create', '--id', record.id, ...variables, name, '-', ...entrypoint, ...command]);
    } catch (error) {
      await this.#forget(key);
      throw (await exists(boxPath(name))) ? errors.nameTaken(name) : error;
    }
    return createdOf(record, key);
  }

  async findCreated(_: Specification, key: string): Promise<CreatedService | undefined> {
    const record = await this.#records.read(key);
    if (record === undefined) return undefined;
    if (isHere(record)) return createdOf(record, key);
    await this.#forget(key);
    return undefined;
  }

  /** Drops the record, and what minibox left if it was cut short. */
  async #forget(key: string): Promise<void> {
    const record = await this.#records.read(key);
    if (record !== undefined) await rm(draftPath(record.id), { recursive: true, force: true });
    await this.#records.remove(key);
  }

  /** minibox refuses to start or to remove a frozen box; whoever stops it has asked for its end. */
  async freeze(handle: string): Promise<void> {
    const known = readHandle(handle);
    const state = await this.state(handle);
    if (state === 'frozen') return;
    if (state !== 'running') throw refusal(known, state);
    if (await setFrozen(groupOf(known.name), true, FREEZE_LIMIT_MS)) return;
    throw new UmsError('UMS_E_ENGINE', { message: `${known.name} could not be frozen`, fault: 'source' });
  }

  async thaw(handle: string): Promise<void> {
    const known = readHandle(handle);
    await waitForCriu(known.name);
    const state = await this.state(handle);
    if (state === 'running') return;
    if (state !== 'frozen') throw refusal(known, state);
    await waitUntilUntraced(await this.processes(handle), UNTRACED_LIMIT_MS);
    if (await setFrozen(groupOf(known.name), false, THAW_LIMIT_MS)) return;
    throw new UmsError('UMS_E_ENGINE', { message: `${known.name} could not be thawed`, fault: 'source' });
  }

  prepareCheckpoint(): Promise<void> {
    return Promise.resolve();
  }

  descriptors(): Promise<string | undefined> {
    return Promise.resolve(undefined);
  }

  async checkpoint(handle: string, request: CheckpointRequest): Promise<void> {
    refuseLazy(this, request);
    const known = readHandle(handle);
    const state = await this.state(handle);
    const first = firstOf(await this.processes(handle));
    if (state !== 'frozen' || first === undefined) throw refusal(known, state);
    await dump(known.name, first, request);
  }

  afterCheckpoint(): AfterCheckpoint {
    return { ended: Promise.resolve(), holds: Promise.resolve() };
  }

  prepareRestore(): Promise<void> {
    return Promise.resolve();
  }

  async restore(handle: string, request: RestoreRequest): Promise<void> {
    refuseLazy(this, request);
    const known = readHandle(handle);
    await waitForCriu(known.name);
    const state = await this.state(handle);
    if (state === 'restored') return;
    if (state !== 'created') throw refusal(known, state);
    const { imagesDir, workDir } = request;
    const group = groupOf(known.name);
    await mkdir(workDir, { recursive: true });
    await mkdir(group.directory, { recursive: true });
    const criu = await requireProgram('criu');
    const settings = { id: known.id, criu, imagesDir, workDir, ownNetwork: false, lazy: false };
    await this.#area.prepare({ ...settings, home: await ownGroup() });
    await restore(known.name, this.#area.criuSettings(known.id), request);
    const [pid = 0] = await processesOf(group);
    await requireAllFrozen(pid, workDir);
  }

  async resume(handle: string): Promise<void> {
    const known = readHandle(handle);
    const state = await this.state(handle);
    if (state === 'running') return;
    if (state !== 'restored') throw refusal(known, state);
    await this.#markStarted(known);
    if (await setFrozen(groupOf(known.name), false, THAW_LIMIT_MS)) return;
    throw new UmsError('UMS_E_RESTORE', { message: `${known.name} was let go but does not run`, fault: 'destination' });
  }

  /** When it ends, minibox shall say that it has stopped. */
  async #markStarted(known: MiniboxHandle): Promise<void> {
    if (isHere(known)) await writeFile(startedMark(known.name), '');
  }

  /** Its control group has no controllers. */
  throttle(): Promise<boolean> {
    return Promise.resolve(false);
  }

  async remove(handle: string, options: RemoveOptions): Promise<void> {
    const known = readHandle(handle);
    const made = known.key === undefined ? undefined : await this.#records.read(known.key);
    await this.#end(known);
    // A box is all files, which are kept as a volume is; what this migration has made goes in any case.
    if (isHere(known) && (options.volumes || made !== undefined)) await changeBox(['rm', known.name]);
    await this.#area.remove(known.id);
    if (known.key !== undefined) await this.#forget(known.key);
  }

  /** Ends its processes where they stand. */
  async #end(known: MiniboxHandle): Promise<void> {
    if (!isHere(known)) return;
    await waitForCriu(known.name);
    const group = groupOf(known.name);
    const pids = await processesOf(group);
    if (pids.length === 0) return;
    await waitUntilUntraced(pids, UNTRACED_LIMIT_MS);
    if (await killFrozen(group, pids)) return;
    throw new UmsError('UMS_E_TIMEOUT', { message: `${known.name} does not end`, fault: 'service' });
  }

  /** minibox starts no box by itself, so nothing has to be kept from it. */
  async discard(handle: string): Promise<void> {
    await this.#end(readHandle(handle));
  }

  async adopt(handle: string): Promise<void> {
    await this.#markStarted(readHandle(handle));
  }

  async settle(handle: string): Promise<void> {
    const known = readHandle(handle);
    await this.#markStarted(known);
    await this.#area.remove(known.id);
    if (known.key !== undefined) await this.#records.remove(known.key);
  }

  startFresh(handle: string): Promise<void> {
    return this.start(handle);
  }

  async restartFresh(handle: string): Promise<void> {
    const known = readHandle(handle);
    await this.#end(known);
    await this.#area.remove(known.id);
    await this.start(handle);
  }

  async stop(handle: string): Promise<void> {
    const known = readHandle(handle);
    const state = await this.state(handle);
    if (state === 'stopped' || state === 'created') return;
    if (state !== 'running') throw refusal(known, state);
    await changeBox(['stop', known.name]);
  }

  async start(handle: string): Promise<void> {
    const known = readHandle(handle);
    const state = await this.state(handle);
    if (state === 'running') return;
    if (state !== 'stopped' && state !== 'created') throw refusal(known, state);
    await changeBox(['start', known.name]);
  }
}

function treesOf(name: string): Tree[] {
  return [{ id: 'rootfs', path: rootfsOf(name), kind: 'plain' }];
}

function createdOf(record: CreateRecord, key: string): CreatedService {
  return { handle: writeHandle(record, key), id: record.id, trees: treesOf(record.name) };
}

function refusal({ name }: MiniboxHandle, state: ServiceState): UmsError {
  return state === 'absent' ? errors.gone(name) : errors.notRunning(name, state);
}

export function createMiniboxDriver(options: DriverOptions): Driver {
  return new MiniboxDriver(options);
}
