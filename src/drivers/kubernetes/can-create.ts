import type { Finding } from '../contract.ts';
import { findingOf, portFindings } from '../oci/findings.ts';
import { findProgram } from '../oci/runtime.ts';
import type { Specification } from '../specification.ts';
import { type Cluster, type KubernetesApi, KubernetesRefusal } from './api.ts';
import { claimFindings, claimRights } from './claims.ts';
import { hasImage, takenName } from './images.ts';
import { manifestHere, type Place, podOf, RUNTIME_CLASS } from './manifest.ts';
import { missingRights } from './owner.ts';
import { missingOf, type Right } from './owner-steps.ts';
import { ownerTold, placeOf, possibleSet } from './owner-told.ts';
import type { Node, Pod, Volume } from './schema.ts';

/** What stands against making the pod here. Makes nothing. */
export async function canCreate(cluster: Cluster, specification: Specification): Promise<Finding[]> {
  const api = await cluster.api();
  const { namespace, pod } = podOf(specification);
  const forbidden = await rightsFindings(api, namespace, pod);
  if (forbidden.length > 0) return forbidden;
  const node = await cluster.node();
  const findings = [
    ...nodeFindings(node),
    ...(await runtimeFindings(api)),
    ...(await nameFindings(api, specification)),
  ];
  findings.push(
    ...(await volumeFindings(api, namespace, pod)),
    ...(await claimFindings(api, namespace, pod)),
    ...(await imageFindings(specification)),
  );
  findings.push(...(await portFindings(specification.ports)));
  const { place, findings: owners } = await placeOf(api, namespace, pod);
  findings.push(...owners);
  // Last, because what it says first may be a consequence of something above.
  if (findings.length === 0) findings.push(...(await admissionFindings(api, specification, place, node)));
  return findings;
}

const RIGHTS: readonly Right[] = [
  ['get', 'pods'],
  ['create', 'pods'],
  ['delete', 'pods'],
  // Another owner here may take it for one of its own.
  ['list', 'replicasets'],
];

async function rightsFindings(api: KubernetesApi, namespace: string, pod: Pod): Promise<Finding[]> {
  const rights: Right[] = [
    ...RIGHTS,
    ...(possibleSet(pod) === undefined ? [] : [['get', 'statefulsets'] as const]),
    ...claimRights(pod),
  ];
  const own = await missingOf(api, namespace, rights);
  // A pod that left an owner may come back to it.
  const owner = ownerTold(pod);
  const more = owner === undefined ? [] : await missingRights(api, namespace, owner.kind);
  const missing = [...new Set([...own, ...more])];
  if (missing.length === 0) return [];
  return [
    findingOf(
      'error',
      'kubernetes.forbidden',
      `The agent may not ${missing.join(', ')} in namespace ${namespace} here`,
      'It makes the pod that receives the service, and removes it if the migration fails.',
      'Grant its user these verbs in that namespace (kubectl create role, kubectl create rolebinding)',
    ),
  ];
}

function nodeFindings(node: Node): Finding[] {
  const ready = node.status.conditions.find(({ type }) => type === 'Ready');
  if (ready?.status === 'True' && !node.spec.unschedulable) return [];
  return [
    findingOf(
      'error',
      'kubernetes.node',
      node.spec.unschedulable
        ? `Node ${node.metadata.name} takes no new pods (cordoned)`
        : `Node ${node.metadata.name} is not ready`,
      ready?.message ?? 'It says nothing of itself.',
      node.spec.unschedulable
        ? `kubectl uncordon ${node.metadata.name}`
        : `kubectl describe node ${node.metadata.name}`,
    ),
  ];
}

async function runtimeFindings(api: KubernetesApi): Promise<Finding[]> {
  const findings: Finding[] = [];
  if ((await api.runtimeHandler(RUNTIME_CLASS)) === undefined) {
    findings.push(
      findingOf(
        'error',
        'runtime.unknown',
        `The cluster has no runtime class ${RUNTIME_CLASS}`,
        'A pod is started out of a checkpoint only through that.',
        'Tell containerd and the cluster of it: docs/drivers.md, "Kubernetes"',
      ),
    );
  }
  for (const program of ['runc', 'ctr']) {
    if ((await findProgram(program)) !== undefined) continue;
    const what = `There is no ${program} here`;
    const mend = `apt install ${program === 'ctr' ? 'containerd' : program}`;
    findings.push(findingOf('error', 'runtime.missing', what, 'Restoring needs it.', mend));
  }
  return findings;
}

async function nameFindings(api: KubernetesApi, specification: Specification): Promise<Finding[]> {
  const { namespace, pod } = podOf(specification);
  const { name } = pod.metadata;
  if (!(await api.has(undefined, 'namespaces', namespace))) {
    const mend = `kubectl create namespace ${namespace}`;
    return [
      findingOf('error', 'namespace.missing', `There is no namespace ${namespace} here`, 'The pod is in it.', mend),
    ];
  }
  if ((await api.pod(namespace, name)) === undefined) return [];
  return [
    findingOf(
      'error',
      'name.taken',
      `A pod named ${name} exists here in namespace ${namespace}`,
      'The service keeps its name.',
      `kubectl --namespace ${namespace} delete pod ${name}, if nobody needs it`,
    ),
  ];
}

/** Secrets and config maps stay references: each cluster has its own. */
async function volumeFindings(api: KubernetesApi, namespace: string, pod: Pod): Promise<Finding[]> {
  const findings: Finding[] = [];
  for (const volume of pod.spec.volumes) {
    const wanted = objectOf(volume);
    if (wanted === undefined || (await api.has(namespace, wanted.kind, wanted.name))) continue;
    findings.push(
      findingOf(
        'error',
        'volume.missing',
        `There is no ${wanted.kind.slice(0, -1)} ${wanted.name} here in namespace ${namespace}`,
        `The pod mounts it as ${volume.name}; what a cluster keeps in it does not leave the cluster.`,
        'Make it here first',
      ),
    );
  }
  return findings;
}

function objectOf({ secret, configMap }: Volume): { kind: 'secrets' | 'configmaps'; name: string } | undefined {
  const secretName = named(secret, 'secretName');
  if (secretName !== undefined) return { kind: 'secrets', name: secretName };
  const mapName = named(configMap, 'name');
  return mapName === undefined ? undefined : { kind: 'configmaps', name: mapName };
}

/** The name in this field, unless the pod can do without what it means. */
function named(from: unknown, field: string): string | undefined {
  if (typeof from !== 'object' || from === null || ('optional' in from && from.optional === true)) return undefined;
  const value: unknown = Object.entries(from).find(([key]) => key === field)?.[1];
  return typeof value === 'string' ? value : undefined;
}

async function imageFindings(specification: Specification): Promise<Finding[]> {
  const name = await takenName(specification);
  if (name === undefined) return await missingImageFindings(specification);
  return [
    findingOf(
      'error',
      'image.taken',
      `The node has another image by the name of ${name}`,
      'A pod names its image, and nothing is overwritten.',
      `ctr --namespace k8s.io images tag ${name} OTHER, then images rm ${name}`,
    ),
  ];
}

async function missingImageFindings(specification: Specification): Promise<Finding[]> {
  const { image } = specification;
  if (image.kind !== 'image' || image.fixed !== true || (await hasImage(specification))) return [];
  const name = image.names[0] ?? image.id;
  return [
    findingOf(
      'error',
      'image.missing',
      `The node no longer has the image ${name}, by which the pod was made`,
      'Where the service is now the image has another form, in which it cannot come back.',
      `ctr --namespace k8s.io images pull ${name}`,
    ),
  ];
}

/** The API server's own decision: quotas, policies, admission webhooks. */
async function admissionFindings(
  api: KubernetesApi,
  specification: Specification,
  place: Place,
  node: Node,
): Promise<Finding[]> {
  const { namespace, pod } = podOf(specification);
  try {
    await api.createPod(namespace, manifestHere(pod, place, node.metadata.name, 'dry-run'), true);
    return [];
  } catch (error) {
    if (!(error instanceof KubernetesRefusal)) throw error;
    return [
      findingOf(
        'error',
        'kubernetes.refused',
        `The cluster would refuse the pod: ${error.message}`,
        'It is asked to make it like any other.',
        'Change what the message names: a quota, a policy, or an admission webhook',
      ),
    ];
  }
}
