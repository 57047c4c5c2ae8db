import type { KubernetesApi } from './api.ts';
import { nameOf } from './describe.ts';
import { HASH_LABEL } from './manifest.ts';
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
import {
  AWAY_ANNOTATION,
  type DeploymentOwner,
  FINALIZER,
  HELD_ANNOTATION,
  isHeld,
  sameTemplate,
  waitsFor,
} from './owner-told.ts';
import type { Deployment, OwnerReference, Pod, ReplicaSet } from './schema.ts';

/**
 * A pod of a Deployment leaves and comes back, and nothing that its owner does on the way makes a second one:
 *
 *   hold       the Deployment is paused, and its ReplicaSet deleted in the way that leaves the pod without an owner, but kept
 *              from going by a finalizer. A ReplicaSet that is being deleted makes no pods and adopts none, whatever it
 *              is scaled to, and as long as it is there the Deployment makes no other one for the same template.
 *   give back  the Deployment goes on, the finalizer goes and with it the ReplicaSet; the Deployment makes it anew, and the
 *              new one adopts the pod, as it does with any that has its labels.
 *
 * Each step is asked of the API server, is idempotent, and is waited for until the controller concerned says that it has
 * seen it, so that none acts on what it saw before. Only then may the pod go.
 */
const RIGHTS: readonly Right[] = [
  ['get', 'deployments'],
  ['patch', 'deployments'],
  ['get', 'replicasets'],
  ['list', 'replicasets'],
  ['patch', 'replicasets'],
  ['delete', 'replicasets'],
  ['patch', 'pods'],
];

/** What the agent needs to hold a Deployment and to give it its pod back, and may not do. */
export function missingForDeployment(api: KubernetesApi, namespace: string): Promise<string[]> {
  return missingOf(api, namespace, RIGHTS);
}

/** The Deployment above the ReplicaSet that a pod belongs to. Throws where there is none, or it cannot be held. */
export async function deploymentOf(api: KubernetesApi, pod: Pod, reference: OwnerReference): Promise<DeploymentOwner> {
  const { namespace, uid } = pod.metadata;
  await requireRights(api, namespace, nameOf(pod), RIGHTS);
  const set = await api.replicaSet(namespace, reference.name);
  const above = set?.metadata.ownerReferences.find(({ controller }) => controller === true);
  const deployment = above?.kind === 'Deployment' ? await api.deployment(namespace, above.name) : undefined;
  if (set?.metadata.uid !== reference.uid || deployment === undefined || deployment.metadata.uid !== above?.uid) {
    throw refused(nameOf(pod), {
      why: `its ${reference.kind} ${reference.name} has no Deployment that would make it anew`,
      mend: 'Of pods that something else has made, only those of a Deployment or a StatefulSet can be moved so far.',
    });
  }
  const { name } = deployment.metadata;
  const problem = unfit(deployment, set);
  if (problem !== undefined) throw refused(nameOf(pod), { ...problem, why: `its Deployment ${name} ${problem.why}` });
  return {
    kind: 'Deployment',
    name,
    uid: deployment.metadata.uid,
    replicaSet: { name: reference.name, uid: reference.uid },
    pod: uid,
  };
}

/** One pod and no other, and no roll-out: then "the service" is this pod. */
function unfit({ metadata, spec, status }: Deployment, set: ReplicaSet): Unfit | undefined {
  if (metadata.deletionTimestamp !== undefined) return { why: 'is being deleted', mend: 'Make it again first.' };
  const away = metadata.annotations[HELD_ANNOTATION];
  if (away !== undefined) {
    return { why: 'has another pod that is away', mend: `See its annotation ${AWAY_ANNOTATION}.` };
  }
  if (spec.paused) return { why: 'is paused', mend: `kubectl rollout resume deployment ${metadata.name}` };
  if (spec.replicas !== 1) {
    return {
      why: `has ${spec.replicas} replicas, which are one service to their clients`,
      mend: `kubectl scale deployment ${metadata.name} --replicas=1`,
    };
  }
  const settled = status.observedGeneration >= metadata.generation && status.replicas === 1 && set.spec.replicas === 1;
  if (settled && status.updatedReplicas === 1) return undefined;
  return { why: 'is in the middle of a roll-out', mend: `kubectl rollout status deployment ${metadata.name}` };
}

/** From now on nothing that is done to the owner makes another pod, or ends this one. */
export async function holdDeployment(api: KubernetesApi, namespace: string, owner: DeploymentOwner): Promise<void> {
  const paused = await pause(api, namespace, owner);
  await seen(`Deployment ${owner.name} is paused`, async () => {
    const now = await api.deployment(namespace, owner.name);
    return now === undefined || now.status.observedGeneration >= paused.metadata.generation;
  });
  await orphan(api, namespace, owner, paused);
  // It counts none only once it has seen both that it is being deleted and that the pod is no longer its own.
  await seen(`ReplicaSet ${owner.replicaSet.name} has let go of its pod`, async () => {
    const set = await api.replicaSet(namespace, owner.replicaSet.name);
    return isHeld(set, owner) && set.metadata.deletionTimestamp !== undefined && set.status.replicas === 0;
  });
}

async function pause(api: KubernetesApi, namespace: string, owner: DeploymentOwner): Promise<Deployment> {
  for (let tries = 0; tries < CONFLICTS_MAX; tries += 1) {
    const deployment = await api.deployment(namespace, owner.name);
    if (waitsFor(deployment, owner) && deployment.spec.paused) return deployment;
    if (deployment?.metadata.uid !== owner.uid || deployment.spec.replicas !== 1) throw changed(owner);
    const { resourceVersion } = deployment.metadata;
    const patch = { metadata: { resourceVersion, annotations: leaving(owner) }, spec: { paused: true } };
    const done = await api.patchDeployment(namespace, owner.name, patch);
    if (done !== undefined) return done;
  }
  throw changed(owner);
}

async function orphan(
  api: KubernetesApi,
  namespace: string,
  owner: DeploymentOwner,
  paused: Deployment,
): Promise<void> {
  for (let tries = 0; tries < CONFLICTS_MAX; tries += 1) {
    const { name, uid } = owner.replicaSet;
    const set = await api.replicaSet(namespace, name);
    if (set?.metadata.uid !== uid) throw changed(owner);
    const { finalizers, resourceVersion, deletionTimestamp } = set.metadata;
    if (isHeld(set, owner)) {
      if (deletionTimestamp !== undefined) return;
      // A roll-out that had begun before the Deployment was paused has another ReplicaSet, with a pod of its own.
      if (set.spec.replicas !== 1 || !sameTemplate(paused, set)) throw changed(owner);
      await api.orphanPodsOf(namespace, set);
    } else {
      if (deletionTimestamp !== undefined) throw changed(owner);
      const metadata = { resourceVersion, finalizers: [...finalizers, FINALIZER] };
      await api.patchReplicaSet(namespace, name, { metadata });
    }
  }
  throw changed(owner);
}

/** What `kubectl describe deployment` shows of a service that is away. */
export async function tellDeployment(
  api: KubernetesApi,
  namespace: string,
  owner: DeploymentOwner,
  where: string,
): Promise<void> {
  const deployment = await api.deployment(namespace, owner.name);
  if (!waitsFor(deployment, owner)) return;
  await api.patchDeployment(namespace, owner.name, { metadata: { annotations: leftFor(where) } });
}

/**
 * The pod is its Deployment's again, and what was asked of that meanwhile is done. `returned` is a pod that has come back,
 * which must not be ended by what was said while it was away.
 */
export async function giveBackToDeployment(
  api: KubernetesApi,
  namespace: string,
  owner: DeploymentOwner,
  pod: PodIdentity,
  returned: boolean,
): Promise<void> {
  const deployment = await api.deployment(namespace, owner.name);
  const waits = waitsFor(deployment, owner);
  if (returned) await disown(api, namespace, owner, pod, waits);
  if (!waits) return await withoutOwner(api, namespace, owner, deployment, returned ? undefined : pod);
  const going = await api.patchDeployment(namespace, owner.name, { spec: { paused: false } });
  await seen(`Deployment ${owner.name} goes on`, async () => {
    const now = await api.deployment(namespace, owner.name);
    return now === undefined || now.status.observedGeneration >= (going?.metadata.generation ?? 0);
  });
  await letGo(api, namespace, owner);
  await adopted(api, namespace, owner, pod);
  await api.patchDeployment(namespace, owner.name, { metadata: { annotations: NOTHING_NOTED } });
}

/** It was not held; or the Deployment was deleted meanwhile, and then what it had goes with it, but not what came back. */
async function withoutOwner(
  api: KubernetesApi,
  namespace: string,
  owner: DeploymentOwner,
  deployment: Deployment | undefined,
  pod: PodIdentity | undefined,
): Promise<void> {
  if (!isHeld(await api.replicaSet(namespace, owner.replicaSet.name), owner)) return;
  const isGone = deployment?.metadata.uid !== owner.uid || deployment.metadata.deletionTimestamp !== undefined;
  if (isGone && pod !== undefined) await api.endPod(namespace, pod.name, pod.uid);
  if (isGone || pod !== undefined) await letGo(api, namespace, owner);
}

/**
 * A pod that came back belongs to the ReplicaSet that is being deleted, so that its controller counts it: then it has seen it,
 * and the next ReplicaSet will find it and make no other. It must belong to nothing when that one goes, or it goes too.
 */
async function disown(
  api: KubernetesApi,
  namespace: string,
  owner: DeploymentOwner,
  { name, uid }: PodIdentity,
  waits: boolean,
): Promise<void> {
  const { uid: setUid } = owner.replicaSet;
  const pod = await api.pod(namespace, name);
  if (pod?.metadata.uid !== uid) return;
  if (!pod.metadata.ownerReferences.some((reference) => reference.uid === setUid)) return;
  if (waits) {
    await seen(`ReplicaSet ${owner.replicaSet.name} counts pod ${name}`, async () => {
      const set = await api.replicaSet(namespace, owner.replicaSet.name);
      return !isHeld(set, owner) || set.status.replicas > 0;
    });
  }
  await disownPod(api, namespace, name);
}

/** The ReplicaSet that was kept goes. */
async function letGo(api: KubernetesApi, namespace: string, owner: DeploymentOwner): Promise<void> {
  const { name } = owner.replicaSet;
  await seen(`ReplicaSet ${name} is gone`, async () => {
    const set = await api.replicaSet(namespace, name);
    if (set?.metadata.uid !== owner.replicaSet.uid) return true;
    const { resourceVersion, finalizers, deletionTimestamp } = set.metadata;
    if (!finalizers.includes(FINALIZER)) return deletionTimestamp === undefined;
    const left = othersThanOurs(finalizers);
    await api.patchReplicaSet(namespace, name, { metadata: { resourceVersion, finalizers: left } });
    return false;
  });
}

/**
 * Until the pod has an owner again, or is gone, or is one too many: an update that was asked for meanwhile has another
 * ReplicaSet, whose pod takes this one's place.
 */
async function adopted(
  api: KubernetesApi,
  namespace: string,
  owner: DeploymentOwner,
  { name, uid }: PodIdentity,
): Promise<void> {
  await seen(`Deployment ${owner.name} has pod ${name} back`, async () => {
    const pod = await api.pod(namespace, name);
    if (pod?.metadata.uid !== uid || pod.metadata.deletionTimestamp !== undefined) return true;
    if (pod.metadata.ownerReferences.some(({ controller }) => controller === true)) return true;
    const deployment = await api.deployment(namespace, owner.name);
    if (deployment?.metadata.uid !== owner.uid) return await ends(api, namespace, name, uid);
    const sets = (await api.replicaSets(namespace)).filter(
      ({ metadata }) =>
        metadata.deletionTimestamp === undefined && metadata.ownerReferences.some((each) => each.uid === owner.uid),
    );
    const wanted = sets.find((set) => sameTemplate(deployment, set));
    const hash = pod.metadata.labels[HASH_LABEL];
    // Its own ReplicaSet may not have been made yet.
    if (wanted === undefined || wanted.spec.selector.matchLabels[HASH_LABEL] === hash) return false;
    return await ends(api, namespace, name, uid);
  });
}

async function ends(api: KubernetesApi, namespace: string, name: string, uid: string): Promise<true> {
  await api.endPod(namespace, name, uid);
  return true;
}
