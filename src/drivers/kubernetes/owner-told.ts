import { z } from 'zod';
import type { Finding } from '../contract.ts';
import { findingOf } from '../oci/findings.ts';
import type { KubernetesApi } from './api.ts';
import { HASH_LABEL, OWNER_ANNOTATION, type Place } from './manifest.ts';
import type { Deployment, Pod, ReplicaSet } from './schema.ts';

/**
 * The Deployment that a pod belongs to. It stays in its cluster, and the pod takes along, as an annotation, which one it was,
 * so that it is given back to that one when it returns.
 */
export const ownerSchema = z.object({
  kind: z.literal('Deployment'),
  name: z.string().max(253),
  uid: z.string().max(64),
  replicaSet: z.object({ name: z.string().max(253), uid: z.string().max(64) }),
  /** The pod with which the service left: the Deployment has noted the same. */
  pod: z.string().max(64),
});
export type Owner = z.infer<typeof ownerSchema>;

/** On a Deployment: the pod whose service is on its way or away, and where it is. */
export const HELD_ANNOTATION = 'ums.pod';
export const AWAY_ANNOTATION = 'ums.away';
/** On its ReplicaSet, which is being deleted and therefore makes no pods, for as long as this keeps it. */
export const FINALIZER = 'ums/away';

/** The Deployment that a pod came from, as its annotation says. Whoever sent it may have written anything there. */
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
export function waitsFor(deployment: Deployment | undefined, owner: Owner): deployment is Deployment {
  return (
    deployment !== undefined &&
    deployment.metadata.uid === owner.uid &&
    deployment.metadata.deletionTimestamp === undefined &&
    deployment.metadata.annotations[HELD_ANNOTATION] === owner.pod
  );
}

export function isHeld(set: ReplicaSet | undefined, owner: Owner): set is ReplicaSet {
  return set?.metadata.uid === owner.replicaSet.uid && set.metadata.finalizers.includes(FINALIZER);
}

/** What there is here for a pod that arrives: the Deployment that it once left, or none; and what stands against it. */
export async function placeOf(
  api: KubernetesApi,
  namespace: string,
  pod: Pod,
): Promise<{ place: Place; findings: Finding[] }> {
  const owner = ownerTold(pod);
  const deployment = owner === undefined ? undefined : await api.deployment(namespace, owner.name);
  if (owner === undefined || !waitsFor(deployment, owner)) {
    return { place: { labels: {} }, findings: await adoptionFindings(api, namespace, pod) };
  }
  const set = await api.replicaSet(namespace, owner.replicaSet.name);
  const labels = set?.spec.selector.matchLabels ?? {};
  const finding = problemOf(deployment, set, owner, namespace);
  return { place: { owner, labels }, findings: finding === undefined ? [] : [finding] };
}

function problemOf(
  deployment: Deployment,
  set: ReplicaSet | undefined,
  owner: Owner,
  namespace: string,
): Finding | undefined {
  const kubectl = `kubectl --namespace ${namespace}`;
  if (!isHeld(set, owner)) {
    return findingOf(
      'error',
      'owner.lost',
      `Deployment ${owner.name} no longer keeps a place for it`,
      `Its ReplicaSet ${owner.replicaSet.name} is gone, so it would make another pod beside this one.`,
      `${kubectl} annotate deployment ${owner.name} ${HELD_ANNOTATION}- and the service comes as a pod of its own`,
    );
  }
  if (deployment.spec.replicas < 1) {
    return findingOf(
      'error',
      'owner.scaled',
      `Deployment ${owner.name} was scaled to 0 while its service was away`,
      'It would end the service as soon as it had it back.',
      `${kubectl} scale deployment ${owner.name} --replicas=1`,
    );
  }
  if (sameTemplate(deployment, set)) return undefined;
  return findingOf(
    'error',
    'owner.changed',
    `Deployment ${owner.name} was given another template while its service was away`,
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
  const { labels } = pod.metadata;
  const greedy = (await api.replicaSets(namespace)).find(({ metadata, spec: { selector } }) => {
    const wanted = Object.entries(selector.matchLabels);
    return (
      metadata.deletionTimestamp === undefined &&
      wanted.length > 0 &&
      selector.matchExpressions.length === 0 &&
      wanted.every(([label, value]) => labels[label] === value)
    );
  });
  if (greedy === undefined) return [];
  return [
    findingOf(
      'error',
      'owner.adopts',
      `ReplicaSet ${greedy.metadata.name} here would take the pod for one of its own`,
      'It has the labels that it looks for, and of too many pods a ReplicaSet deletes one.',
      'Use another namespace, or other labels',
    ),
  ];
}
