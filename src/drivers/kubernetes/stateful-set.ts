import { z } from 'zod';
import type { CreateRecords } from '../oci/records.ts';
import type { KubernetesApi } from './api.ts';
import { nameOf } from './describe.ts';
import { REVISION_LABEL } from './manifest.ts';
import {
  changed,
  CONFLICTS_MAX,
  disownPod,
  leaving,
  leftFor,
  missingOf,
  NOTHING_NOTED,
  othersThanOurs,
  type PodIdentity,
  refused,
  requireRights,
  type Right,
  seen,
  type Unfit,
} from './owner-steps.ts';
import { AWAY_ANNOTATION, FINALIZER, HELD_ANNOTATION, isKept, type StatefulSetOwner } from './owner-told.ts';
import type { OwnerReference, Pod, StatefulSet } from './schema.ts';

/**
 * The pod of a StatefulSet leaves and comes back, and its owner makes no second one on the way:
 *
 *   hold       the StatefulSet is deleted, and kept from going by a finalizer. Its controller makes, ends and adopts nothing for one
 *              that is being deleted, whatever is done to it, and has said that it knows (`observedGeneration`).
 *   give back  what it says is written down, the finalizer goes and it with it, and it is made again: nobody above does
 *              that. The new one adopts the pod by its name and labels. Two pods of one name cannot be, so until it has
 *              adopted this one it can make no other. At first it replaces no pods (OnDelete), until it counts this one as
 *              one of its template: then it gets the strategy back that it had.
 *
 * Each step is idempotent, also after a restart of the agent.
 */
const RIGHTS: readonly Right[] = [
  ['get', 'statefulsets'],
  ['create', 'statefulsets'],
  ['patch', 'statefulsets'],
  ['delete', 'statefulsets'],
  ['patch', 'pods'],
];

/** A StatefulSet that goes and is made again: on disk before it goes. */
export const setRecordSchema = z.object({
  v: z.literal(1),
  manifest: z.object({
    metadata: z.looseObject({}),
    spec: z.looseObject({ updateStrategy: z.looseObject({}).optional() }),
  }),
  /** Nobody has given it another template meanwhile: then the pod is of its template, whatever that is called. */
  isUnchanged: z.boolean(),
});
export type SetRecord = z.infer<typeof setRecordSchema>;
type Records = CreateRecords<SetRecord>;

/** What a StatefulSet has that nobody has said. */
const DEFAULT_STRATEGY = { type: 'RollingUpdate' };

export function missingForStatefulSet(api: KubernetesApi, namespace: string): Promise<string[]> {
  return missingOf(api, namespace, RIGHTS);
}

/** The StatefulSet that a pod belongs to. Throws for one that cannot be held. */
export async function statefulSetOf(
  api: KubernetesApi,
  pod: Pod,
  reference: OwnerReference,
): Promise<StatefulSetOwner> {
  const { namespace, uid } = pod.metadata;
  await requireRights(api, namespace, nameOf(pod), RIGHTS);
  const set = await api.statefulSet(namespace, reference.name);
  if (set?.metadata.uid !== reference.uid) {
    throw refused(nameOf(pod), {
      why: `its StatefulSet ${reference.name} is gone`,
      mend: 'Wait until the pod is, too.',
    });
  }
  const problem = unfit(set);
  if (problem !== undefined) {
    throw refused(nameOf(pod), { ...problem, why: `its StatefulSet ${reference.name} ${problem.why}` });
  }
  const { updateRevision: revision } = set.status;
  return { kind: 'StatefulSet', name: reference.name, uid: reference.uid, pod: uid, revision };
}

/** One pod and no other, of the template that it has now: then "the service" is this pod. */
function unfit({ metadata, spec, status }: StatefulSet): Unfit | undefined {
  const { name, annotations, finalizers, deletionTimestamp, generation } = metadata;
  const away = annotations[HELD_ANNOTATION];
  if (away !== undefined) {
    return { why: 'has another pod that is away', mend: `See its annotation ${AWAY_ANNOTATION}.` };
  }
  if (deletionTimestamp !== undefined) return { why: 'is being deleted', mend: 'Make it again first.' };
  if (finalizers.length > 0) {
    return { why: `is kept by others (${finalizers.join(', ')})`, mend: 'Their finalizers must go first.' };
  }
  if (spec.persistentVolumeClaimRetentionPolicy?.whenDeleted === 'Delete') {
    return {
      why: 'has its claims deleted with it (persistentVolumeClaimRetentionPolicy), and it is deleted while its service is away',
      mend: `kubectl patch statefulset ${name} -p '{"spec":{"persistentVolumeClaimRetentionPolicy":{"whenDeleted":"Retain"}}}'`,
    };
  }
  if (spec.replicas !== 1) {
    return {
      why: `has ${spec.replicas} replicas, which are one service to their clients`,
      mend: `kubectl scale statefulset ${name} --replicas=1`,
    };
  }
  const settled = status.observedGeneration >= generation && status.replicas === 1 && status.updatedReplicas === 1;
  if (settled && status.updateRevision !== '') return undefined;
  return { why: 'is in the middle of a roll-out', mend: `kubectl rollout status statefulset ${name}` };
}

export async function holdStatefulSet(api: KubernetesApi, namespace: string, owner: StatefulSetOwner): Promise<void> {
  const deleted = await deleteKept(api, namespace, owner);
  await seen(`StatefulSet ${owner.name} is being deleted`, async () => {
    const now = await api.statefulSet(namespace, owner.name);
    return isKept(now, owner) && now.status.observedGeneration >= deleted.metadata.generation;
  });
}

async function deleteKept(api: KubernetesApi, namespace: string, owner: StatefulSetOwner): Promise<StatefulSet> {
  for (let tries = 0; tries < CONFLICTS_MAX; tries += 1) {
    const set = await api.statefulSet(namespace, owner.name);
    if (set === undefined) throw changed(owner);
    const isOurs: boolean = isKept(set, owner);
    if (isOurs && set.metadata.deletionTimestamp !== undefined) return set;
    if (!isAsDescribed(set, owner)) throw changed(owner);
    // Both are refused when it is no longer as it was seen.
    if (isOurs) await api.deleteStatefulSet(namespace, set);
    else {
      if (unfit(set) !== undefined) throw changed(owner);
      const { resourceVersion, finalizers } = set.metadata;
      const metadata = { resourceVersion, annotations: leaving(owner), finalizers: [...finalizers, FINALIZER] };
      await api.patchStatefulSet(namespace, owner.name, { metadata });
    }
  }
  throw changed(owner);
}

function isAsDescribed({ metadata, spec, status }: StatefulSet, owner: StatefulSetOwner): boolean {
  const isSettled = status.observedGeneration >= metadata.generation && status.updateRevision === owner.revision;
  return metadata.uid === owner.uid && isSettled && spec.replicas === 1;
}

export async function tellStatefulSet(
  api: KubernetesApi,
  namespace: string,
  owner: StatefulSetOwner,
  where: string,
): Promise<void> {
  if (!isKept(await api.statefulSet(namespace, owner.name), owner)) return;
  await api.patchStatefulSet(namespace, owner.name, { metadata: { annotations: leftFor(where) } });
}

export async function giveBackToStatefulSet(
  api: KubernetesApi,
  records: Records,
  namespace: string,
  owner: StatefulSetOwner,
  pod: PodIdentity,
): Promise<void> {
  await letGo(api, records, namespace, owner, pod);
  const record = await records.read(owner.uid);
  // It was not held; or somebody has let it go, and then it takes nothing back.
  if (record === undefined) return;
  const { updateStrategy = DEFAULT_STRATEGY } = record.manifest.spec;
  const spec = { ...record.manifest.spec, updateStrategy: { type: 'OnDelete' } };
  await api.createStatefulSet(namespace, { apiVersion: 'apps/v1', kind: 'StatefulSet', ...record.manifest, spec });
  await adopted(api, namespace, owner, pod, record);
  await api.patchStatefulSet(namespace, owner.name, { spec: { updateStrategy } });
  await records.remove(owner.uid);
}

/** As somebody could have applied it. */
function manifestOf({ metadata, spec }: StatefulSet): SetRecord['manifest'] {
  const { name, labels, annotations, ownerReferences } = metadata;
  const own = Object.entries(annotations).filter(([key]) => key !== HELD_ANNOTATION && key !== AWAY_ANNOTATION);
  return { metadata: { name, labels, annotations: Object.fromEntries(own), ownerReferences }, spec };
}

async function disown(api: KubernetesApi, namespace: string, { name, uid }: PodIdentity): Promise<void> {
  if ((await api.pod(namespace, name))?.metadata.uid !== uid) return;
  await disownPod(api, namespace, name);
}

/** It goes, as it is written down. Whatever is done to it in between is seen, and written down anew. */
async function letGo(
  api: KubernetesApi,
  records: Records,
  namespace: string,
  owner: StatefulSetOwner,
  pod: PodIdentity,
): Promise<void> {
  await seen(`StatefulSet ${owner.name} is gone`, async () => {
    const set = await api.statefulSet(namespace, owner.name);
    if (set === undefined) return true;
    const isOurs: boolean = isKept(set, owner);
    if (!isOurs) return set.metadata.uid !== owner.uid || set.metadata.deletionTimestamp === undefined;
    const { resourceVersion, finalizers, deletionTimestamp, generation } = set.metadata;
    const left = othersThanOurs(finalizers);
    if (deletionTimestamp === undefined) {
      // Holding it was cut short, so it simply stays.
      const annotations = NOTHING_NOTED;
      await api.patchStatefulSet(namespace, owner.name, {
        metadata: { resourceVersion, finalizers: left, annotations },
      });
    } else if (set.status.observedGeneration >= generation) {
      const isUnchanged = set.status.updateRevision === owner.revision;
      await records.write(owner.uid, { v: 1, manifest: manifestOf(set), isUnchanged });
      // With an owner that goes it would go, too.
      await disown(api, namespace, pod);
      await api.patchStatefulSet(namespace, owner.name, { metadata: { resourceVersion, finalizers: left } });
    }
    return false;
  });
}

/**
 * Until the pod is its own and counted as one of its template; or the pod is gone, or is replaced because somebody has asked
 * for another template; or the StatefulSet is gone.
 */
async function adopted(
  api: KubernetesApi,
  namespace: string,
  owner: StatefulSetOwner,
  { name, uid }: PodIdentity,
  { isUnchanged }: SetRecord,
): Promise<void> {
  await seen(`StatefulSet ${owner.name} has pod ${name} back`, async () => {
    const [pod, set] = await Promise.all([api.pod(namespace, name), api.statefulSet(namespace, owner.name)]);
    if (set === undefined) return true;
    if (set.metadata.uid === owner.uid || set.status.observedGeneration < set.metadata.generation) return false;
    if (pod?.metadata.uid !== uid || pod.metadata.deletionTimestamp !== undefined) return true;
    if (!pod.metadata.ownerReferences.some((reference) => reference.uid === set.metadata.uid)) return false;
    if (!isUnchanged || set.status.updatedReplicas > 0) return true;
    const { updateRevision } = set.status;
    // Names of templates are counted, so the same one may have another name now.
    if (updateRevision !== '' && pod.metadata.labels[REVISION_LABEL] !== updateRevision) {
      await api.patchPod(namespace, name, { metadata: { labels: { [REVISION_LABEL]: updateRevision } } });
    }
    return false;
  });
}
