import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import type { CreatedService, Tree } from '../contract.ts';
import { entriesOf, undoCopies } from '../oci/files.ts';
import { arrivingTrees, mountedTrees, planMounts, unique } from '../oci/mount-trees.ts';
import type { CreateRecords } from '../oci/records.ts';
import { ServiceErrors } from '../oci/service-errors.ts';
import type { Specification } from '../specification.ts';
import {
  createContainer as make,
  createVolume,
  DockerRefusal,
  inspectContainer,
  inspectVolume,
  removeContainer,
  removeVolume,
  renameContainer,
} from './api.ts';
import { createBody } from './create-body.ts';
import { nameOf } from './describe.ts';
import { writeHandle } from './handle.ts';
import { imageReference } from './images.ts';
import type { Inspect } from './schema.ts';
import { handleOf, upperPath } from './surroundings.ts';

/**
 * What one `create` makes. The container is made under a name that only this migration uses, its id is noted, and then it
 * gets the service's name: so after a crash it is told apart from one of that name that a person made.
 */
export const createRecordSchema = z.object({
  v: z.literal(1),
  name: z.string(),
  id: z.string().optional(),
  madeVolumes: z.array(z.string()),
  /** Bound directories that the content is copied into, and those of them that were not there before. */
  copiedDirectories: z.array(z.string()),
  madeDirectories: z.array(z.string()),
});
export type CreateRecord = z.infer<typeof createRecordSchema>;
type Records = CreateRecords<CreateRecord>;

const CONFLICT = 409;
const TEMPORARY = /^ums-(m-[0-9a-z]{20})$/;
const errors = new ServiceErrors('Docker', 'docker');

function temporaryName(key: string): string {
  return `ums-${key}`;
}

/** The migration for which a container of this name was being made; undefined for every other. */
export function keyOfTemporary(name: string): string | undefined {
  return TEMPORARY.exec(name)?.[1];
}

/** Creates the container, its volumes and the directories it binds; after a crash the same call finishes the work. */
export async function createContainer(
  records: Records,
  specification: Specification,
  key: string,
): Promise<CreatedService> {
  const done = await findContainer(records, specification, key);
  if (done !== undefined) return done;
  const record = await plan(specification);
  await records.write(key, record);
  try {
    for (const name of record.madeVolumes) await makeVolume(specification, name);
    for (const path of record.copiedDirectories) await mkdir(path, { recursive: true });
    const body = createBody(specification, await imageReference(specification));
    const id = await make(temporaryName(key), body);
    await records.write(key, { ...record, id });
    const inspect = await inspectContainer(id);
    if (inspect === undefined) throw errors.gone(specification.name);
    await emptyVolumes(inspect, specification);
    await rename(id, specification.name);
  } catch (error) {
    await undoRecord(records, key, (await records.read(key)) ?? record);
    throw error;
  }
  const created = await findContainer(records, specification, key);
  if (created === undefined) throw errors.gone(specification.name);
  return created;
}

async function rename(id: string, name: string): Promise<void> {
  try {
    await renameContainer(id, name);
  } catch (error) {
    // Another container took the name after the check: what was made for this one goes, the other stays.
    throw error instanceof DockerRefusal && error.status === CONFLICT ? errors.nameTaken(name) : error;
  }
}

/** What the record's `create` made. When it never came to its end, what was made is taken back. */
export async function findContainer(
  records: Records,
  specification: Specification,
  key: string,
): Promise<CreatedService | undefined> {
  const record = await records.read(key);
  if (record === undefined) return undefined;
  const inspect = record.id === undefined ? undefined : await inspectContainer(record.id);
  if (inspect === undefined || nameOf(inspect) !== record.name) {
    await undoRecord(records, key, record);
    return undefined;
  }
  const handle = writeHandle({ ...handleOf(inspect), key });
  return { handle, id: inspect.Id, trees: destinationTrees(inspect, specification) };
}

export async function undoRecord(records: Records, key: string, record: CreateRecord): Promise<void> {
  const unfinished = await inspectContainer(temporaryName(key));
  if (unfinished !== undefined) await removeContainer(unfinished.Id);
  if (record.id !== undefined) await removeContainer(record.id);
  for (const name of record.madeVolumes) await removeVolume(name);
  await undoCopies(record.copiedDirectories, record.madeDirectories);
  await records.remove(key);
}

async function plan(specification: Specification): Promise<CreateRecord> {
  const { name } = specification;
  if ((await inspectContainer(name)) !== undefined) throw errors.nameTaken(name);
  const mounts = await planMounts(specification, 'docker', async (each) => (await inspectVolume(each)) !== undefined);
  return { v: 1, name, ...mounts };
}

async function makeVolume(specification: Specification, name: string): Promise<void> {
  const mount = specification.mounts.find((each) => each.kind === 'volume' && each.name === name);
  await createVolume(name, mount?.kind === 'volume' ? mount.labels : {});
}

/** Docker fills new volumes from the image when it creates a container; the service brings its own content. */
async function emptyVolumes(inspect: Inspect, specification: Specification): Promise<void> {
  for (const { path, id } of destinationTrees(inspect, specification)) {
    if (!id.startsWith('volume:')) continue;
    for (const name of await entriesOf(path)) await rm(join(path, name), { recursive: true, force: true });
  }
}

/** Where each tree of the service goes here. */
function destinationTrees(inspect: Inspect, specification: Specification): Tree[] {
  return unique([upperTree(inspect), ...arrivingTrees(specification, inspect.Mounts)]);
}

export function sourceTrees(inspect: Inspect): Tree[] {
  return unique([upperTree(inspect), ...mountedTrees(inspect.Mounts)]);
}

export function upperTree(inspect: Inspect): Tree {
  return { id: 'upper', path: upperPath(inspect), kind: 'overlay-upper' };
}
