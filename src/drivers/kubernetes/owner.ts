import type { CreateRecords } from '../oci/records.ts';
import type { KubernetesApi } from './api.ts';
import {
  deploymentOf,
  giveBackToDeployment,
  holdDeployment,
  missingForDeployment,
  tellDeployment,
} from './deployment.ts';
import type { PodIdentity } from './owner-steps.ts';
import type { Owner } from './owner-told.ts';
import type { Pod } from './schema.ts';
import {
  giveBackToStatefulSet,
  holdStatefulSet,
  missingForStatefulSet,
  type SetRecord,
  statefulSetOf,
  tellStatefulSet,
} from './stateful-set.ts';

/**
 * What made a pod, and would make another one in its place. It is held before the pod may go, and is given the pod back when
 * that stays or returns; how, each kind of owner says itself.
 */
export interface OwnerMeans {
  api: KubernetesApi;
  /** Of StatefulSets that are about to be made again. */
  records: CreateRecords<SetRecord>;
}

/** Undefined for a pod of its own. Throws for an owner that cannot be held. */
export async function ownerOf(api: KubernetesApi, pod: Pod): Promise<Owner | undefined> {
  const reference = pod.metadata.ownerReferences.find(({ controller }) => controller === true);
  if (reference === undefined) return undefined;
  return reference.kind === 'StatefulSet'
    ? await statefulSetOf(api, pod, reference)
    : await deploymentOf(api, pod, reference);
}

/** What the agent needs to hold an owner of that kind and to give it its pod back, and may not do. */
export function missingRights(api: KubernetesApi, namespace: string, kind: Owner['kind']): Promise<string[]> {
  return kind === 'StatefulSet' ? missingForStatefulSet(api, namespace) : missingForDeployment(api, namespace);
}

/** From now on nothing that is done to the owner makes another pod, or ends this one. */
export function holdOwner({ api }: OwnerMeans, namespace: string, owner: Owner): Promise<void> {
  return owner.kind === 'StatefulSet' ? holdStatefulSet(api, namespace, owner) : holdDeployment(api, namespace, owner);
}

/** What `kubectl describe` shows of an owner whose service is away. */
export function tellWhere({ api }: OwnerMeans, namespace: string, owner: Owner, where: string): Promise<void> {
  return owner.kind === 'StatefulSet'
    ? tellStatefulSet(api, namespace, owner, where)
    : tellDeployment(api, namespace, owner, where);
}

/**
 * The pod is its owner's again, and what was asked of that meanwhile is done. `returned` is a pod that has come back, which
 * must not be ended by what was said while it was away.
 */
export function giveBack(
  { api, records }: OwnerMeans,
  namespace: string,
  owner: Owner,
  pod: PodIdentity,
  returned: boolean,
): Promise<void> {
  return owner.kind === 'StatefulSet'
    ? giveBackToStatefulSet(api, records, namespace, owner, pod)
    : giveBackToDeployment(api, namespace, owner, pod, returned);
}
