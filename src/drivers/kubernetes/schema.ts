import { z } from 'zod';
import { nullableList, nullableRecord } from '../oci/answers.ts';

/** What ums reads of the answers of an API server; everything else passes through untouched, or is left alone. */
const name = z.string().max(253);

const containerStatusSchema = z.object({
  name,
  containerID: z.string().default(''),
  imageID: z.string().default(''),
  image: z.string().default(''),
  ready: z.boolean().default(false),
  restartCount: z.int().default(0),
  state: z
    .object({
      running: z.object({}).optional(),
      waiting: z.object({ reason: z.string().default(''), message: z.string().default('') }).optional(),
      terminated: z.object({ exitCode: z.int(), reason: z.string().default('') }).optional(),
    })
    .default({}),
});

/** A volume has one key beside its name: its kind. */
const volumeSchema = z.looseObject({
  name,
  persistentVolumeClaim: z.looseObject({ claimName: name, readOnly: z.boolean().default(false) }).optional(),
});
const volumeMountSchema = z.looseObject({
  name,
  mountPath: z.string().startsWith('/'),
  readOnly: z.boolean().default(false),
  subPath: z.string().optional(),
  subPathExpr: z.string().optional(),
});

export const containerSchema = z.looseObject({
  name,
  image: z.string(),
  command: nullableList(z.string()),
  args: nullableList(z.string()),
  env: nullableList(z.looseObject({ name: z.string(), value: z.string().optional() })),
  workingDir: z.string().optional(),
  imagePullPolicy: z.string().optional(),
  volumeMounts: nullableList(volumeMountSchema),
  ports: nullableList(
    z.looseObject({
      containerPort: z.int(),
      hostPort: z.int().optional(),
      hostIP: z.string().optional(),
      protocol: z.string().default('TCP'),
    }),
  ),
  tty: z.boolean().default(false),
  stdin: z.boolean().default(false),
  volumeDevices: nullableList(z.unknown()),
  livenessProbe: z.unknown().optional(),
  startupProbe: z.unknown().optional(),
});

const ownerReferenceSchema = z.looseObject({
  kind: z.string(),
  name: z.string(),
  uid: z.string().default(''),
  controller: z.boolean().optional(),
});
export type OwnerReference = z.infer<typeof ownerReferenceSchema>;
const ownerReferencesSchema = nullableList(ownerReferenceSchema);

export const podSchema = z.looseObject({
  apiVersion: z.string().optional(),
  kind: z.string().optional(),
  metadata: z.looseObject({
    name,
    namespace: name.default('default'),
    uid: z.string().default(''),
    creationTimestamp: z.string().default(''),
    deletionTimestamp: z.string().optional(),
    labels: nullableRecord(z.string()),
    annotations: nullableRecord(z.string()),
    ownerReferences: ownerReferencesSchema,
  }),
  spec: z.looseObject({
    containers: z.array(containerSchema).min(1).max(100),
    initContainers: nullableList(z.looseObject({ name: z.string().default(''), restartPolicy: z.string().optional() })),
    ephemeralContainers: nullableList(z.looseObject({ name: z.string().default('') })),
    volumes: nullableList(volumeSchema),
    nodeName: z.string().default(''),
    runtimeClassName: z.string().optional(),
    restartPolicy: z.string().default('Always'),
    hostNetwork: z.boolean().default(false),
    hostPID: z.boolean().default(false),
    hostIPC: z.boolean().default(false),
    shareProcessNamespace: z.boolean().default(false),
    terminationGracePeriodSeconds: z.int().optional(),
    hostname: z.string().optional(),
  }),
  status: z
    .looseObject({
      phase: z.string().default(''),
      reason: z.string().default(''),
      message: z.string().default(''),
      podIP: z.string().default(''),
      containerStatuses: nullableList(containerStatusSchema),
    })
    .optional(),
});
export type Pod = z.infer<typeof podSchema>;
export type Volume = z.infer<typeof volumeSchema>;

export const podListSchema = z.object({ items: z.array(podSchema).max(10_000) });
/** What every object has, as far as owners need it. */
const ownedMetadataSchema = z.object({
  name,
  uid: z.string(),
  resourceVersion: z.string(),
  generation: z.int().default(0),
  deletionTimestamp: z.string().optional(),
  annotations: nullableRecord(z.string()),
  finalizers: nullableList(z.string()),
  ownerReferences: ownerReferencesSchema,
});
/** A pod's template, compared as a whole, but for the label that its Deployment adds. */
const templateSchema = z.looseObject({ metadata: z.looseObject({ labels: nullableRecord(z.string()) }) });

const selectorSchema = z.looseObject({
  matchLabels: nullableRecord(z.string()),
  matchExpressions: nullableList(z.unknown()),
});

export const deploymentSchema = z.object({
  metadata: ownedMetadataSchema,
  spec: z.object({ replicas: z.int().default(1), paused: z.boolean().default(false), template: templateSchema }),
  status: z
    .object({
      observedGeneration: z.int().default(0),
      replicas: z.int().default(0),
      updatedReplicas: z.int().default(0),
    })
    .default({ observedGeneration: 0, replicas: 0, updatedReplicas: 0 }),
});
export type Deployment = z.infer<typeof deploymentSchema>;

export const replicaSetSchema = z.object({
  metadata: ownedMetadataSchema,
  spec: z.object({
    replicas: z.int().default(1),
    selector: selectorSchema,
    template: templateSchema,
  }),
  status: z.object({ replicas: z.int().default(0) }).default({ replicas: 0 }),
});
export type ReplicaSet = z.infer<typeof replicaSetSchema>;
export const replicaSetListSchema = z.object({ items: z.array(replicaSetSchema).max(10_000) });

/** It is made again as it was, so nothing of what it says is left out. */
export const statefulSetSchema = z.object({
  metadata: ownedMetadataSchema.extend({ labels: nullableRecord(z.string()) }),
  spec: z.looseObject({
    replicas: z.int().default(1),
    selector: selectorSchema,
    template: templateSchema,
    updateStrategy: z.looseObject({ type: z.string() }).optional(),
    persistentVolumeClaimRetentionPolicy: z.looseObject({ whenDeleted: z.string().optional() }).optional(),
  }),
  status: z
    .object({
      observedGeneration: z.int().default(0),
      replicas: z.int().default(0),
      updatedReplicas: z.int().default(0),
      currentRevision: z.string().default(''),
      updateRevision: z.string().default(''),
    })
    .default({ observedGeneration: 0, replicas: 0, updatedReplicas: 0, currentRevision: '', updateRevision: '' }),
});
export type StatefulSet = z.infer<typeof statefulSetSchema>;
export const claimSchema = z.object({ status: z.object({ phase: z.string().default('') }).default({ phase: '' }) });
export type Claim = z.infer<typeof claimSchema>;
export const versionSchema = z.object({ gitVersion: z.string() });
export const nodeSchema = z.object({
  metadata: z.object({ name }),
  spec: z.object({ unschedulable: z.boolean().default(false) }).default({ unschedulable: false }),
  status: z.object({
    conditions: nullableList(
      z.object({
        type: z.string(),
        status: z.string(),
        reason: z.string().default(''),
        message: z.string().default(''),
      }),
    ),
    nodeInfo: z.object({ containerRuntimeVersion: z.string().default(''), kubeletVersion: z.string().default('') }),
  }),
});
export type Node = z.infer<typeof nodeSchema>;
export const nodeListSchema = z.object({ items: z.array(nodeSchema).max(10_000) });
export const namedSchema = z.object({ metadata: z.object({ name }) });
export const runtimeClassSchema = z.object({ handler: z.string() });
export const reviewSchema = z.object({
  status: z.object({ allowed: z.boolean(), reason: z.string().default('') }),
});
