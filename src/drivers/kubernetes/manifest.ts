import { UmsError } from '#src/telemetry/errors.ts';
import type { Specification } from '../specification.ts';
import type { DeploymentOwner, Owner } from './owner-told.ts';
import { type Pod, podSchema, type Volume } from './schema.ts';

/** The runtime class through which a pod is restored, and the annotation that says for which migration. */
export const RUNTIME_CLASS = 'ums';
export const MIGRATION_ANNOTATION = 'ums.migration';
/** Which owner a pod left that has none where it is. */
export const OWNER_ANNOTATION = 'ums.owner';
/** A Deployment adds it to its pods, so that each of its ReplicaSets knows its own. */
export const HASH_LABEL = 'pod-template-hash';
/** A StatefulSet adds it, with the name of the template that the pod was made from. */
export const REVISION_LABEL = 'controller-revision-hash';
const ACCOUNT_TOKEN = '/var/run/secrets/kubernetes.io/serviceaccount';

/** The volume that the API server adds so that a pod can speak to it: every cluster adds its own. */
export function isTokenVolume(pod: Pod, volume: Volume): boolean {
  const mounts = pod.spec.containers.flatMap(({ volumeMounts }) => volumeMounts);
  const own = mounts.filter(({ name }) => name === volume.name);
  return own.length > 0 && own.every(({ mountPath }) => mountPath === ACCOUNT_TOKEN) && !('emptyDir' in volume);
}

/** What a cluster fills in when it takes a pod. */
const FILLED_IN = ['nodeName', 'serviceAccount', 'priority', 'preemptionPolicy', 'overhead', 'runtimeClassName'];

function without<T>(record: Record<string, T>, names: readonly string[]): Record<string, T> {
  return Object.fromEntries(Object.entries(record).filter(([name]) => !names.includes(name)));
}

/** What a person called it by. */
export function labelsOf({ metadata: { labels } }: Pod): Record<string, string> {
  return without(labels, [HASH_LABEL, REVISION_LABEL]);
}

/** A pod without what its cluster has added: what a person could have written; and which owner stays behind. */
export function manifestOf(pod: Pod, owner?: Owner): Record<string, unknown> {
  const { metadata, spec } = pod;
  const tokens = new Set(spec.volumes.filter((volume) => isTokenVolume(pod, volume)).map(({ name }) => name));
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: {
      name: metadata.name,
      namespace: metadata.namespace,
      labels: labelsOf(pod),
      annotations: {
        ...without(metadata.annotations, [MIGRATION_ANNOTATION]),
        ...(owner === undefined ? {} : { [OWNER_ANNOTATION]: JSON.stringify(owner) }),
      },
    },
    spec: {
      ...without(spec, FILLED_IN),
      volumes: spec.volumes.filter(({ name }) => !tokens.has(name)),
      containers: spec.containers.map((container) => ({
        ...container,
        volumeMounts: container.volumeMounts.filter(({ name }) => !tokens.has(name)),
      })),
    },
  };
}

export function podOf(specification: Specification): { namespace: string; pod: Pod } {
  if (specification.pod === undefined) {
    throw new UmsError('UMS_E_SPECIFICATION', {
      message: `${specification.name} was described without its pod`,
      fault: 'source',
    });
  }
  const { namespace, manifest } = specification.pod;
  return { namespace, pod: podSchema.parse(JSON.parse(manifest)) };
}

/** Where a pod belongs that arrives: to the owner that it once left, or to nobody. */
export interface Place {
  owner?: Owner | undefined;
  /** What its ReplicaSet or StatefulSet knows its pods by. */
  labels: Record<string, string>;
}

/** The pod as it is made here: on this node, by the runtime class that restores, from the image that is here. */
export function manifestHere(pod: Pod, place: Place, node: string, key: string): Record<string, unknown> {
  const { owner } = place;
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: {
      name: pod.metadata.name,
      namespace: pod.metadata.namespace,
      labels: { ...pod.metadata.labels, ...place.labels },
      ...(owner?.kind === 'Deployment' ? { ownerReferences: [referenceTo(owner)] } : {}),
      annotations: { ...pod.metadata.annotations, [MIGRATION_ANNOTATION]: key },
    },
    spec: {
      ...pod.spec,
      nodeName: node,
      runtimeClassName: RUNTIME_CLASS,
      containers: pod.spec.containers.map((container) => ({
        ...container,
        // The image has come with the service; a registry may have none, or another by that name.
        imagePullPolicy: container.imagePullPolicy === 'Never' ? 'Never' : 'IfNotPresent',
      })),
    },
  };
}

function referenceTo({ replicaSet: { name, uid } }: DeploymentOwner): Record<string, unknown> {
  return { apiVersion: 'apps/v1', kind: 'ReplicaSet', name, uid, controller: true, blockOwnerDeletion: false };
}
