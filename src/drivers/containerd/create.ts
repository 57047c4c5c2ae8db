import { mkdir, rm } from 'node:fs/promises';
import { UmsError } from '#src/telemetry/errors.ts';
import { z } from 'zod';
import type { CreatedService, Tree } from '../contract.ts';
import { exists, undoCopies } from '../oci/files.ts';
import { arrivingTrees, mountedTrees, planMounts, unique } from '../oci/mount-trees.ts';
import type { CreateRecords } from '../oci/records.ts';
import type { Specification } from '../specification.ts';
import { type ContainerdClient, decodeOptions } from './client.ts';
import { bindsOf, isRestartLabel, parseConfig, textOf } from './describe.ts';
import { errors } from './errors.ts';
import { ContainerdRefusal, STATUS } from './grpc.ts';
import { type ContainerdHandle, type Stdio, stdioSchema, writeHandle } from './handle.ts';
import { heldSpec, specOf } from './hold.ts';
import { localImage, unpack } from './images.ts';
import { logFileOf, refuseRecord, upperOf } from './losses.ts';
import { runtimeRoot } from './surroundings.ts';
import type { Any, Container } from './schema.ts';

/** What one `create` makes. The record and the snapshot bear the migration's key until it is settled. */
export const createRecordSchema = z.object({
  v: z.literal(1),
  id: z.string(),
  snapshotter: z.string(),
  /** Labels that would have containerd start it by itself; it gets them when the service has been handed over. */
  restartLabels: z.record(z.string(), z.string()),
  /** The log file that the runtime will make; empty when there is none. */
  log: z.string(),
  /** Bound directories that the content is copied into, and those of them that were not there before. */
  copiedDirectories: z.array(z.string()),
  madeDirectories: z.array(z.string()),
});
export type CreateRecord = z.infer<typeof createRecordSchema>;
type Records = CreateRecords<CreateRecord>;

/** Label of what a migration makes here, with its key. */
export const MARK = 'ums.migration';
const LEASE_MS = 60 * 60_000;

/** Makes the container's snapshot and record, and the directories it binds; after a crash the same call finishes the work. */
export async function createContainer(
  client: ContainerdClient,
  records: Records,
  specification: Specification,
  key: string,
): Promise<CreatedService> {
  const done = await findContainer(client, records, specification, key);
  if (done !== undefined) return done;
  const told = partOf(specification);
  const record = await plan(client, specification);
  await records.write(key, record);
  const lease = `ums-${key}`;
  try {
    const image = await localImage(client, specification);
    if (image === undefined) throw noImage(specification.name);
    // Until the container refers to it, containerd's collector would take the snapshot for garbage.
    await client.createLease(lease, new Date(Date.now() + LEASE_MS));
    await unpack(client, image, told.snapshotter);
    for (const path of record.copiedDirectories) await mkdir(path, { recursive: true });
    const { id, snapshotter } = record;
    await client.prepareSnapshot({ snapshotter, key: id, parent: image.chain, labels: { [MARK]: key } }, lease);
    await client.createContainer(recordOf(specification, key, image.name), lease);
    await client.deleteLease(lease);
  } catch (error) {
    await undoRecord(client, records, key, record);
    if (error instanceof ContainerdRefusal && error.status === STATUS.alreadyExists) throw errors.nameTaken(record.id);
    throw error;
  }
  const created = await findContainer(client, records, specification, key);
  if (created === undefined) throw errors.gone(specification.name);
  return created;
}

function partOf({ name, containerd }: Specification): NonNullable<Specification['containerd']> {
  if (containerd !== undefined) return containerd;
  throw new UmsError('UMS_E_SPECIFICATION', {
    message: `What ${name} is does not say how containerd shall run it`,
    fault: 'source',
    mend: 'Only containers of containerd can be made here.',
  });
}

function noImage(name: string): UmsError {
  return new UmsError('UMS_E_ENGINE', {
    message: `The image of ${name} is not here as a whole`,
    fault: 'destination',
    mend: 'Run the migration again.',
  });
}

/**
 * The same record as at the source, but that nobody can start it yet (hold.ts), and nothing that would have containerd
 * start it by itself is there: `adopt` gives it back.
 */
function recordOf(specification: Specification, key: string, image: string): Omit<Container, 'created_at'> {
  const { name, labels } = specification;
  const told = partOf(specification);
  const spec = heldSpec({ type_url: told.spec.type, value: Buffer.from(told.spec.text, 'utf8') });
  const { options } = told;
  return {
    id: name,
    labels: { ...withoutRestart(labels), [MARK]: key },
    image,
    runtime: { name: told.runtime, ...(options === undefined ? {} : { options: anyOf(options) }) },
    spec,
    snapshotter: told.snapshotter,
    snapshot_key: name,
    extensions: Object.fromEntries(Object.entries(told.extensions).map(([each, value]) => [each, anyOf(value)])),
    sandbox: '',
  };
}

function anyOf({ type, base64 }: { type: string; base64: string }): Any {
  return { type_url: type, value: Buffer.from(base64, 'base64') };
}

function withoutRestart(labels: Record<string, string>): Record<string, string> {
  return Object.fromEntries(Object.entries(labels).filter(([label]) => !isRestartLabel(label)));
}

/** What the record's `create` made. When it never came to its end, what was made is taken back. */
export async function findContainer(
  client: ContainerdClient,
  records: Records,
  specification: Specification,
  key: string,
): Promise<CreatedService | undefined> {
  const record = await records.read(key);
  if (record === undefined) return undefined;
  const container = await client.container(record.id);
  if (container?.labels[MARK] !== key) {
    await undoRecord(client, records, key, record);
    return undefined;
  }
  const upper = upperOf(await client.snapshotMounts(container.snapshotter, container.snapshot_key));
  if (upper === undefined) throw errors.gone(specification.name);
  const handle = writeHandle({ ...handleOf(client, container, stdioIn(specification)), key });
  return { handle, id: container.id, trees: unique([upperTree(upper), ...arrivingTrees(specification, [])]) };
}

/** Removes what a `create` made, and only that. */
export async function undoRecord(
  client: ContainerdClient,
  records: Records,
  key: string,
  record: CreateRecord,
): Promise<void> {
  const { id, snapshotter, log } = record;
  if ((await client.container(id))?.labels[MARK] === key) await client.deleteContainer(id);
  if ((await client.snapshot(snapshotter, id))?.labels[MARK] === key) await client.removeSnapshot(snapshotter, id);
  await client.deleteLease(`ums-${key}`);
  if (log !== '') await rm(log, { force: true });
  await undoCopies(record.copiedDirectories, record.madeDirectories);
  await records.remove(key);
}

async function plan(client: ContainerdClient, specification: Specification): Promise<CreateRecord> {
  const { name: id } = specification;
  const { snapshotter } = partOf(specification);
  const wanted = recordOf(specification, '', '');
  refuseRecord(wanted, parseConfig(textOf(specOf(wanted)), id));
  if ((await client.container(id)) !== undefined) throw errors.nameTaken(id);
  if ((await client.snapshot(snapshotter, id)) !== undefined) throw errors.nameTaken(id);
  const log = logFileOf(stdioIn(specification)) ?? '';
  if (log !== '' && (await exists(log))) throw logTaken(log);
  const { copiedDirectories, madeDirectories } = await planMounts(specification, 'ctr', async () => false);
  const restartLabels = Object.fromEntries(
    Object.entries(specification.labels).filter(([label]) => isRestartLabel(label)),
  );
  return { v: 1, id, snapshotter, restartLabels, log, copiedDirectories, madeDirectories };
}

function logTaken(path: string): UmsError {
  return new UmsError('UMS_E_NAME_TAKEN', {
    message: `The log file ${path} exists already`,
    fault: 'destination',
    state: 'It was left as it is.',
    mend: 'Move it away and try again.',
  });
}

/** Where the output of the service shall go, as its specification says it. */
export function stdioIn({ logDriver, logOptions, openStdin }: Specification): Stdio {
  if (logDriver === 'fifo') return { kind: 'fifo', stdin: openStdin };
  const told = stdioSchema.safeParse({ kind: logDriver, uri: logOptions['uri'] });
  return told.success ? told.data : { kind: 'null' };
}

export function handleOf(client: ContainerdClient, container: Container, stdio: Stdio): ContainerdHandle {
  const config = parseConfig(textOf(specOf(container)), container.id);
  return {
    v: 1,
    engine: 'containerd',
    namespace: client.namespace,
    id: container.id,
    created: createdAt(container),
    root: runtimeRoot(decodeOptions(container.runtime?.options).root, client.namespace),
    snapshotter: container.snapshotter,
    snapshotKey: container.snapshot_key,
    stdio,
    ownNetwork: config.linux.namespaces.some(({ type }) => type === 'network'),
  };
}

/** When its record was made, to the nanosecond. */
export function createdAt({ created_at }: Container): string {
  return `${created_at?.seconds ?? 0}.${created_at?.nanos ?? 0}`;
}

function upperTree(path: string): Tree {
  return { id: 'upper', path, kind: 'overlay-upper' };
}

/** Bound files of the host are no trees of the service. */
export function sourceTrees(upper: string, configText: string, id: string): Tree[] {
  const binds = bindsOf(parseConfig(configText, id)).filter(({ transfer }) => transfer !== 'expect');
  const told = binds.map(({ source, destination }) => ({ Type: 'bind', Source: source, Destination: destination }));
  return unique([upperTree(upper), ...mountedTrees(told)]);
}
