import { z } from 'zod';
import type { Finding } from '../contract.ts';
import { findingOf } from '../oci/findings.ts';
import type { KubernetesApi } from './api.ts';
import { HASH_LABEL, OWNER_ANNOTATION, type Place, REVISION_LABEL } from './manifest.ts';
import type { Deployment, Pod, ReplicaSet, StatefulSet } from './schema.ts';

/**
 * The owner that a pod belongs to. It stays in its cluster, and the pod takes along, as an annotation, which one it was,
 * so that it is given back to that one when it returns.
 */
const name = z.string().max(253);
const uid = z.string().max(64);
const deploymentOwnerSchema = z.object({
  kind: z.literal('Deployment'),
  name,
  uid,
  replicaSet: z.object({ name, uid }),
  /** The pod with which the service left: its owner has noted the same. */
  pod: uid,
});
const statefulSetOwnerSchema = z.object({
  kind: z.literal('StatefulSet'),
  name,
  uid,
  pod: uid,
  /** The name of its template as it was when the service left. */
  revision: name,
});
export const ownerSchema = z.discriminatedUnion('kind', [deploymentOwnerSchema, statefulSetOwnerSchema]);
export type Owner = z.infer<typeof ownerSchema>;
export type DeploymentOwner = z.infer<typeof deploymentOwnerSchema>;
export type StatefulSetOwner = z.infer<typeof statefulSetOwnerSchema>;

/** On a Deployment or a StatefulSet: the pod whose service is on its way or away, and where it is. */
export const HELD_ANNOTATION = 'ums.pod';
export const AWAY_ANNOTATION = 'ums.away';
/** On a ReplicaSet or a StatefulSet that is being deleted and therefore makes no pods, for as long as this keeps it. */
export const FINALIZER = 'ums/away';

/** The owner that a pod came from, as its annotation says. Whoever sent it may have written anything there. */
export function ownerTold(pod: Pod): Owner | undefined {
  const text = pod.metadata.annotations[OWNER_ANNOTATION];
  if (text === undefined || text.length > 4096) return undefined;
  try {
    return ownerSchema.parse(JSON.parse(text));
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof z.ZodError) return undefined;
    throw error;
  }
}

/** It is there, and has noted that this pod's service is away: nobody else can have it given back. */
export function waitsFor(deployment: Deployment | undefined, owner: DeploymentOwner): deployment is Deployment {
  return (
    deployment !== undefined &&
    deployment.metadata.uid === owner.uid &&
    deployment.metadata.deletionTimestamp === undefined &&
    deployment.metadata.annotations[HELD_ANNOTATION] === owner.pod
  );
}

export function isHeld(set: ReplicaSet | undefined, owner: DeploymentOwner): set is ReplicaSet {
  return set?.metadata.uid === owner.replicaSet.uid && set.metadata.finalizers.includes(FINALIZER);
}

/** It has noted that this pod's service is away, and is being deleted, or about to be, without going. */
export function isKept(set: StatefulSet | undefined, owner: StatefulSetOwner): set is StatefulSet {
  if (set === undefined) return false;
  const { uid: itsUid, finalizers, annotations } = set.metadata;
  return itsUid === owner.uid && finalizers.includes(FINALIZER) && annotations[HELD_ANNOTATION] === owner.pod;
}

export interface Placed {
  place: Place;
  findings: Finding[];
}

/** What there is here for a pod that arrives: the owner that it once left, or none; and what stands against it. */
export async function placeOf(api: KubernetesApi, namespace: string, pod: Pod): Promise<Placed> {
  const owner = ownerTold(pod);
  const found =
    owner?.kind === 'Deployment'
      ? await placeInDeployment(api, namespace, owner)
      : owner?.kind === 'StatefulSet'
        ? await placeInStatefulSet(api, namespace, owner)
        : undefined;
  return found ?? { place: { labels: {} }, findings: await adoptionFindings(api, namespace, pod) };
}

async function placeInDeployment(
  api: KubernetesApi,
  namespace: string,
  owner: DeploymentOwner,
): Promise<Placed | undefined> {
  const deployment = await api.deployment(namespace, owner.name);
  if (!waitsFor(deployment, owner)) return undefined;
  const set = await api.replicaSet(namespace, owner.replicaSet.name);
  const labels = set?.spec.selector.matchLabels ?? {};
  const finding = isHeld(set, owner)
    ? changedFinding(owner, namespace, deployment.spec.replicas, !sameTemplate(deployment, set))
    : lostFinding(owner, namespace);
  return { place: { owner, labels }, findings: finding === undefined ? [] : [finding] };
}

async function placeInStatefulSet(
  api: KubernetesApi,
  namespace: string,
  owner: StatefulSetOwner,
): Promise<Placed | undefined> {
  const set = await api.statefulSet(namespace, owner.name);
  if (!isKept(set, owner)) return undefined;
  // Its controller still names every template that it is given.
  const isOther = set.status.updateRevision !== owner.revision;
  const finding = changedFinding(owner, namespace, set.spec.replicas, isOther);
  return {
    place: { owner, labels: { [REVISION_LABEL]: owner.revision } },
    findings: finding === undefined ? [] : [finding],
  };
}

function lostFinding({ name: its, replicaSet }: DeploymentOwner, namespace: string): Finding {
  return findingOf(
    'error',
    'owner.lost',
    `Deployment ${its} no longer keeps a place for it`,
    `Its ReplicaSet ${replicaSet.name} is gone, so it would make another pod beside this one.`,
    `kubectl --namespace ${namespace} annotate deployment ${its} ${HELD_ANNOTATION}- and the service comes as a pod of its own`,
  );
}

function changedFinding(owner: Owner, namespace: string, replicas: number, isOther: boolean): Finding | undefined {
  const what = `${owner.kind} ${owner.name}`;
  if (replicas < 1) {
    return findingOf(
      'error',
      'owner.scaled',
      `${what} was scaled to 0 while its service was away`,
      'It would end the service as soon as it had it back.',
      `kubectl --namespace ${namespace} scale ${owner.kind.toLowerCase()} ${owner.name} --replicas=1`,
    );
  }
  if (!isOther) return undefined;
  return findingOf(
    'error',
    'owner.changed',
    `${what} was given another template while its service was away`,
    'It would end the service as soon as it had it back, and begin another one from its image.',
    'Apply the manifest that the service was started with',
  );
}

/** Whether pods of this ReplicaSet are what the Deployment wants now. */
export function sameTemplate(deployment: Deployment, set: ReplicaSet): boolean {
  return canonical(deployment.spec.template) === canonical(set.spec.template);
}

function canonical(template: Deployment['spec']['template']): string {
  const { [HASH_LABEL]: _added, ...labels } = template.metadata.labels;
  return JSON.stringify({ ...template, metadata: { ...template.metadata, labels } }, (_key, value: unknown) =>
    typeof value === 'object' && value !== null && !Array.isArray(value)
      ? Object.fromEntries(Object.entries(value).toSorted(([a], [b]) => (a < b ? -1 : 1)))
      : value,
  );
}

/** A ReplicaSet takes any pod that has its labels and no owner, and deletes one when it has too many. */
async function adoptionFindings(api: KubernetesApi, namespace: string, pod: Pod): Promise<Finding[]> {
  const greedy = (await api.replicaSets(namespace)).find((set) => isGreedy(set, pod));
  if (greedy !== undefined) return [adopts('ReplicaSet', greedy.metadata.name, 'of too many pods it deletes one')];
  const parent = possibleSet(pod);
  const set = parent === undefined ? undefined : await api.statefulSet(namespace, parent);
  if (set === undefined || !isGreedy(set, pod)) return [];
  return [adopts('StatefulSet', set.metadata.name, 'one that is not of its own template it replaces')];
}

/** The StatefulSet to which a pod of this name would belong, if there were one. */
export function possibleSet(pod: Pod): string | undefined {
  return /^(.+)-\d+$/.exec(pod.metadata.name)?.[1];
}

function isGreedy({ metadata, spec: { selector } }: ReplicaSet | StatefulSet, pod: Pod): boolean {
  const wanted = Object.entries(selector.matchLabels);
  return (
    metadata.deletionTimestamp === undefined &&
    wanted.length > 0 &&
    selector.matchExpressions.length === 0 &&
    wanted.every(([label, value]) => pod.metadata.labels[label] === value)
  );
}

function adopts(kind: string, its: string, danger: string): Finding {
  return findingOf(
    'error',
    'owner.adopts',
    `${kind} ${its} here would take the pod for one of its own`,
    `It has the labels that it looks for, and ${danger}.`,
    'Use another namespace, or other labels',
  );
}
