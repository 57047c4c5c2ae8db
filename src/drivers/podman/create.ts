import { mkdir, readdir, readFile, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { run } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import type { CreatedService, Tree } from '../contract.ts';
import { isMissing, poll } from '../oci/cgroup.ts';
import { undoCopies } from '../oci/files.ts';
import { arrivingTrees, planMounts, unique } from '../oci/mount-trees.ts';
import { ServiceErrors } from '../oci/service-errors.ts';
import type { CreateRecords } from '../oci/records.ts';
import type { Specification } from '../specification.ts';
import { change, engineError, inspectContainer, inspectVolume, volumeUsers } from './cli.ts';
import { createArguments } from './create-args.ts';
import { writeHandle } from './handle.ts';
import { imageReference } from './images.ts';
import type { CreateRecord } from './records.ts';
import type { Inspect } from './schema.ts';

/** The runtime is part of the container for good: only runc can restore it. */
const CREATE = ['--runtime', 'runc', 'create'] as const;
const CREATE_LIMIT_MS = 120_000;
const errors = new ServiceErrors('Podman', 'podman');

/** Creates the container, its volumes and the directories it binds; after a crash the same call finishes the work. */
export async function createContainer(
  records: CreateRecords<CreateRecord>,
  specification: Specification,
  key: string,
): Promise<CreatedService> {
  const done = await findContainer(records, specification, key);
  if (done !== undefined) return done;
  const record = await plan(specification);
  await records.write(key, record);
  try {
    for (const name of record.madeVolumes) await createVolume(specification, name);
    for (const path of record.copiedDirectories) await mkdir(path, { recursive: true });
    await change([...CREATE, ...record.args]);
  } catch (error) {
    await undoRecord(records, key, record);
    // Another container took the name after the check: what was made for this one goes, the other stays.
    const taken = error instanceof UmsError && /name .* is already in use/.test(error.detail ?? error.message);
    throw taken ? errors.nameTaken(specification.name) : engineError(error, `create ${specification.name}`);
  }
  const created = await findMade(record, specification, key);
  if (created === undefined) {
    await undoRecord(records, key, record);
    throw errors.nameTaken(specification.name);
  }
  return created;
}

/**
 * Exactly the container that the record's command made: one of the same name by another command is not it. When the
 * command never came to its end, what was made before it is taken back.
 */
export async function findContainer(
  records: CreateRecords<CreateRecord>,
  specification: Specification,
  key: string,
): Promise<CreatedService | undefined> {
  const record = await records.read(key);
  if (record === undefined) return undefined;
  if (!(await poll(async () => !(await runsNow(record)), CREATE_LIMIT_MS, 50))) {
    throw new UmsError('UMS_E_TIMEOUT', {
      message: `An earlier podman create of ${record.name} still runs`,
      fault: 'destination',
      mend: 'Look at what Podman waits for, and run `ums recover`.',
    });
  }
  const found = await findMade(record, specification, key);
  if (found === undefined) await undoRecord(records, key, record);
  return found;
}

async function findMade(
  record: CreateRecord,
  specification: Specification,
  key: string,
): Promise<CreatedService | undefined> {
  const inspect = await inspectContainer(record.name);
  if (inspect === undefined || !madeBy(inspect, record)) return undefined;
  const trees = await destinationTrees(inspect, specification);
  const handle = writeHandle({
    v: 1,
    engine: 'podman',
    id: inspect.Id,
    name: inspect.Name,
    key,
    shared: specification.mounts.flatMap((mount) => (mount.kind === 'volume' && mount.shared ? [mount.name] : [])),
  });
  return { handle, id: inspect.Id, trees };
}

function madeBy(inspect: Inspect, record: CreateRecord): boolean {
  const command = inspect.Config.CreateCommand;
  const ours = [...CREATE, ...record.args];
  return command.length === ours.length + 1 && ours.every((word, index) => command[index + 1] === word);
}

/** An agent that was killed may have left its `podman create` running. */
async function runsNow(record: CreateRecord): Promise<boolean> {
  const wanted = ['podman', ...CREATE, ...record.args, ''].join('\0');
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    try {
      if ((await readFile(`/proc/${name}/cmdline`, 'utf8')) === wanted) return true;
    } catch (error) {
      if (!isMissing(error)) throw error;
    }
  }
  return false;
}

export async function undoRecord(
  records: CreateRecords<CreateRecord>,
  key: string,
  record: CreateRecord,
): Promise<void> {
  await removeVolumes(record.madeVolumes);
  await undoCopies(record.copiedDirectories, record.madeDirectories);
  await records.remove(key);
}

async function plan(specification: Specification): Promise<CreateRecord> {
  const { name } = specification;
  if ((await inspectContainer(name)) !== undefined) throw errors.nameTaken(name);
  const mounts = await planMounts(specification, 'podman', async (each) => (await inspectVolume(each)) !== undefined);
  const args = createArguments(specification, { image: await imageReference(specification) });
  return { v: 1, name, args, ...mounts };
}

async function createVolume(specification: Specification, name: string): Promise<void> {
  if ((await inspectVolume(name)) !== undefined) return;
  const mount = specification.mounts.find((each) => each.kind === 'volume' && each.name === name);
  const labels = mount?.kind === 'volume' ? Object.entries(mount.labels) : [];
  const flags = labels.flatMap(([label, value]) => ['--label', `${label}=${value}`]);
  try {
    await change(['volume', 'create', ...flags, name]);
  } catch (error) {
    throw engineError(error, `create volume ${name}`);
  }
}

/** Where each tree of the service goes here. */
async function destinationTrees(inspect: Inspect, specification: Specification): Promise<Tree[]> {
  const trees: Tree[] = [upperTree(inspect)];
  if (hasOwnShm(inspect)) {
    await mountShm(inspect);
    trees.push(shmTree(inspect));
  }
  return unique([...trees, ...arrivingTrees(specification, inspect.Mounts)]);
}

export function upperTree(inspect: Inspect): Tree {
  const path = inspect.GraphDriver.Data['UpperDir'];
  if (path === undefined) {
    throw new UmsError('UMS_E_ENGINE', {
      message: `Podman does not say where ${inspect.Name} writes`,
      fault: 'ums',
      mend: 'Use the overlay storage driver.',
    });
  }
  return { id: 'upper', path, kind: 'overlay-upper' };
}

/** Podman keeps a container's /dev/shm outside of it, in a file system in memory that CRIU does not look into. */
export function hasOwnShm(inspect: Inspect): boolean {
  const mode = inspect.HostConfig.IpcMode;
  if (mode !== 'shareable' && mode !== 'private') return false;
  return !inspect.Mounts.some((mount) => mount.Destination === '/dev/shm') && !('/dev/shm' in inspect.HostConfig.Tmpfs);
}

export function shmTree(inspect: Inspect): Tree {
  return { id: 'shm', path: shmPath(inspect), kind: 'plain' };
}

function shmPath(inspect: Inspect): string {
  return join(inspect.StaticDir, 'shm');
}

/** Makes the file system that Podman would make at the start, as it would, so that it can be filled before. */
async function mountShm(inspect: Inspect): Promise<void> {
  const path = shmPath(inspect);
  await mkdir(path, { recursive: true, mode: 0o700 });
  if (await isMounted(path)) return;
  const options = `nosuid,nodev,noexec,mode=1777,size=${inspect.HostConfig.ShmSize}`;
  await run('mount', ['-t', 'tmpfs', '-o', options, 'shm', path], { timeout_ms: 10_000 });
}

/** A file system of its own has another device than the directory that holds it (stat(2)). */
async function isMounted(path: string): Promise<boolean> {
  try {
    return (await stat(path)).dev !== (await stat(dirname(path))).dev;
  } catch (error) {
    if (isMissing(error)) return false;
    throw error;
  }
}

export async function unmountShm(inspect: Inspect): Promise<void> {
  const path = shmPath(inspect);
  if (await isMounted(path)) await run('umount', [path], { timeout_ms: 10_000 });
}

/** Removes the volumes that no container uses any more. */
export async function removeVolumes(names: readonly string[]): Promise<void> {
  for (const name of names) {
    if ((await inspectVolume(name)) === undefined) continue;
    if ((await volumeUsers(name)).length === 0) await change(['volume', 'rm', name]);
  }
}
