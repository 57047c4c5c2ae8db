import { mkdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { UmsError } from '#src/telemetry/errors.ts';
import { run } from '#src/telemetry/exec.ts';
import { z } from 'zod';
import type { CreatedService, Tree } from '../contract.ts';
import { entriesOf, exists } from '../oci/files.ts';
import type { CreateRecords } from '../oci/records.ts';
import type { Specification } from '../specification.ts';
import type { KubernetesApi } from './api.ts';
import { claimPaths, movingVolumes, upperIds } from './describe.ts';
import { errors } from './errors.ts';
import { makeGate, removeGate } from './gate.ts';
import { writeHandle } from './handle.ts';
import { podOf } from './manifest.ts';
import { type Bundle, CONTAINERD_ROOT, emptyDirPath, KUBELET_ROOT, SHM } from './node.ts';
import { ownerSchema, placeOf as placeOfPod } from './owner-told.ts';
import { type Pod, podSchema } from './schema.ts';

/**
 * What one `create` makes, and the pod that `restore` makes later: a pod cannot be made without being started, and the
 * kubelet waits only for minutes. Until then the service's files gather beside the places that they will have, on the same
 * file systems, so that moving them there takes no time.
 */
export const createRecordSchema = z.object({
  v: z.literal(1),
  namespace: z.string(),
  name: z.string(),
  manifest: z.string(),
  volumes: z.array(z.string()),
  /** Where those are that it claims: they were empty, and are filled from now on. */
  claims: z.record(z.string(), z.string()).default({}),
  /** The owner that it comes back to, and what that one knows its pods by. */
  owner: ownerSchema.optional(),
  labels: z.record(z.string(), z.string()).default({}),
  uid: z.string().optional(),
  /** The container into which the files were moved, noted before they are. */
  container: z.string().optional(),
  /** The same of those that follow it in the manifest. */
  more: z.array(z.string()).default([]),
});
export type CreateRecord = z.infer<typeof createRecordSchema>;
type Records = CreateRecords<CreateRecord>;

/** Memory does not outlive a boot, and neither does a pod's /dev/shm. */
const MEMORY_ROOT = '/run';
const ARRIVING = 'ums-arriving';
const COPY_LIMIT_MS = 600_000;
function arriving(root: string, key: string): string {
  return join(root, ARRIVING, key);
}

/** The containers that a record knows of, in the order of the manifest. */
export function containersOf({ container, more }: CreateRecord): string[] {
  return container === undefined ? [] : [container, ...more];
}

function podIn({ manifest }: Pick<CreateRecord, 'manifest'>): Pod {
  return podSchema.parse(JSON.parse(manifest));
}

/** The names of all containers that it shall have. */
export function wantedOf(record: Pick<CreateRecord, 'manifest'>): string[] {
  return podIn(record).spec.containers.map(({ name }) => name);
}

function treesOf(key: string, { volumes, manifest }: Pick<CreateRecord, 'volumes' | 'manifest'>): Tree[] {
  return [
    ...upperIds(podIn({ manifest })).map((id) => ({
      id,
      // A container's name has no character that a file's could not have.
      path: join(arriving(CONTAINERD_ROOT, key), id.replace(':', '-')),
      kind: 'overlay-upper' as const,
    })),
    { id: 'shm', path: join(arriving(MEMORY_ROOT, key), 'shm'), kind: 'plain' },
    ...volumes.map((name) => ({
      id: `volume:${name}`,
      path: join(arriving(KUBELET_ROOT, key), name),
      kind: 'plain' as const,
    })),
  ];
}

export async function createPlace(
  records: Records,
  api: KubernetesApi,
  specification: Specification,
  key: string,
): Promise<CreatedService> {
  const { namespace, pod } = podOf(specification);
  const { name } = pod.metadata;
  if ((await api.pod(namespace, name)) !== undefined) throw errors.nameTaken(name);
  const manifest = specification.pod?.manifest ?? '';
  const shared = specification.mounts.flatMap((mount) => (mount.kind === 'volume' && mount.shared ? [mount.name] : []));
  const { owner, labels } = (await placeOfPod(api, namespace, pod)).place;
  await records.write(key, {
    v: 1,
    namespace,
    name,
    manifest,
    volumes: movingVolumes(pod).filter((volume) => !shared.includes(volume)),
    claims: {},
    ...(owner === undefined ? {} : { owner }),
    labels,
    more: [],
  });
  const created = await findPlace(records, key);
  if (created === undefined) throw errors.gone(name);
  return created;
}

/** What the record's `create` made; what of it a boot has taken is made again. */
export async function findPlace(records: Records, key: string): Promise<CreatedService | undefined> {
  const record = await records.read(key);
  if (record === undefined) return undefined;
  await makeGate(key);
  const trees = treesOf(key, record);
  for (const { path } of trees) await mkdir(path, { recursive: true });
  const { namespace, name } = record;
  return { handle: writeHandle({ v: 1, engine: 'kubernetes', namespace, name, key }), id: key, trees };
}

/**
 * The files go where the container has its own, and with the first of a pod what all of them share. Again after a crash: what
 * was moved is no longer here.
 */
export async function moveIn(
  record: CreateRecord,
  key: string,
  uid: string,
  bundle: Bundle,
  at: number,
): Promise<void> {
  const own = upperIds(podIn(record))[at];
  for (const tree of treesOf(key, record)) {
    if (tree.kind === 'overlay-upper' ? tree.id !== own : at > 0) continue;
    const target = placeOf(tree, uid, bundle, record);
    if (target !== undefined && (await exists(tree.path))) await moveInto(tree.path, target);
  }
}

function placeOf({ id, kind }: Tree, uid: string, bundle: Bundle, { claims }: CreateRecord): string | undefined {
  if (kind === 'overlay-upper') return bundle.upper;
  if (id === 'shm') return bundle.sources.get(SHM);
  const name = id.slice('volume:'.length);
  return claims[name] ?? emptyDirPath(uid, name);
}

/** Where the volumes are that it claims and that its files shall go to. They must be empty: nobody else's files are touched. */
export async function claimsFor(record: CreateRecord, bundle: Bundle): Promise<Record<string, string>> {
  const claims = Object.entries(claimPaths(podIn(record), bundle)).filter(([name]) => record.volumes.includes(name));
  for (const [name, path] of claims) {
    if ((await contentOf(path)).length > 0) throw notEmpty(record.name, name);
  }
  return Object.fromEntries(claims);
}

function notEmpty(pod: string, volume: string): UmsError {
  return new UmsError('UMS_E_SPECIFICATION', {
    message: `What pod ${pod} claims as its volume ${volume} is not empty here`,
    fault: 'destination',
    state: 'Nothing in it was touched.',
    mend: `Empty it. If both clusters have it from the same storage, say --shared-volume ${volume}.`,
  });
}

/** What is in a volume, but for what its file system has by itself. */
async function contentOf(path: string): Promise<string[]> {
  return (await entriesOf(path)).filter((name) => name !== 'lost+found');
}

/** Takes out what has moved on, or was brought in vain. */
export async function emptyClaims(claims: Readonly<Record<string, string>>, keep: readonly string[]): Promise<void> {
  for (const [name, path] of Object.entries(claims)) {
    if (keep.includes(name)) continue;
    for (const entry of await contentOf(path)) await rm(join(path, entry), { recursive: true, force: true });
  }
}

async function moveInto(from: string, to: string): Promise<void> {
  for (const name of await entriesOf(from)) {
    await rm(join(to, name), { recursive: true, force: true });
    try {
      await rename(join(from, name), join(to, name));
    } catch (error) {
      if (!(error instanceof Error && 'code' in error && error.code === 'EXDEV')) throw error;
    }
  }
  // What lies on another file system, and the directory's own owner, mode and attributes.
  await run('cp', ['--archive', '--no-target-directory', from, to], { timeout_ms: COPY_LIMIT_MS });
}

/** What gathered here has its place, or is not wanted. */
export async function removePlace(key: string): Promise<void> {
  for (const root of [CONTAINERD_ROOT, MEMORY_ROOT, KUBELET_ROOT]) {
    await rm(arriving(root, key), { recursive: true, force: true });
  }
}

export async function forget(records: Records, key: string): Promise<void> {
  await removePlace(key);
  await removeGate(key);
  await records.remove(key);
}
