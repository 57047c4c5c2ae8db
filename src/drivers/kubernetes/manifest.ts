import { UmsError } from '#src/telemetry/errors.ts';
import type { Specification } from '../specification.ts';
import { type Pod, podSchema, type Volume } from './schema.ts';

/** The runtime class through which a pod is restored, and the annotation that says for which migration. */
export const RUNTIME_CLASS = 'ums';
export const MIGRATION_ANNOTATION = 'ums.migration';
const ACCOUNT_TOKEN = '/var/run/secrets/kubernetes.io/serviceaccount';

/** The volume that the API server adds so that a pod can speak to it: every cluster adds its own. */
export function isTokenVolume(pod: Pod, volume: Volume): boolean {
  const mounts = pod.spec.containers.flatMap(({ volumeMounts }) => volumeMounts);
  const own = mounts.filter(({ name }) => name === volume.name);
  return own.length > 0 && own.every(({ mountPath }) => mountPath === ACCOUNT_TOKEN) && !('emptyDir' in volume);
}

/** What a cluster fills in when it takes a pod. */
const FILLED_IN = ['nodeName', 'serviceAccount', 'priority', 'preemptionPolicy', 'overhead', 'runtimeClassName'];

function without(record: Record<string, unknown>, names: readonly string[]): Record<string, unknown> {
  return Object.fromEntries(Object.entries(record).filter(([name]) => !names.includes(name)));
}

/** A pod without what its cluster has added: what a person could have written. */
export function manifestOf(pod: Pod): Record<string, unknown> {
  const { metadata, spec } = pod;
  const tokens = new Set(spec.volumes.filter((volume) => isTokenVolume(pod, volume)).map(({ name }) => name));
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: {
      name: metadata.name,
      namespace: metadata.namespace,
      labels: metadata.labels,
      annotations: without(metadata.annotations, [MIGRATION_ANNOTATION]),
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

/** The pod as it is made here: on this node, by the runtime class that restores, from the image that is here. */
export function manifestHere({ pod }: { pod: Pod }, node: string, key: string): Record<string, unknown> {
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: {
      name: pod.metadata.name,
      namespace: pod.metadata.namespace,
      labels: pod.metadata.labels,
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
