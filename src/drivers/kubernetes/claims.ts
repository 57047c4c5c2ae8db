import type { Finding } from '../contract.ts';
import { findingOf } from '../oci/findings.ts';
import type { KubernetesApi } from './api.ts';
import { claimedVolumes, nameOf } from './describe.ts';
import { refused, type Right } from './owner-steps.ts';
import type { Pod } from './schema.ts';

/**
 * Volumes that a pod claims. Their content moves from one cluster's into what the other's has under a claim of the same
 * name, which must be there, bound, empty, and nobody else's; where they are on a node, the kubelet says by mounting them.
 */
const NEEDED: readonly Right[] = [
  ['get', 'persistentvolumeclaims'],
  ['list', 'pods'],
];

export function claimRights(pod: Pod): readonly Right[] {
  return pod.spec.volumes.some((volume) => volume.persistentVolumeClaim !== undefined) ? NEEDED : [];
}

/** What is taken away while another pod has it, too, would be lost to that one. */
export async function refuseUsedClaims(api: KubernetesApi, pod: Pod): Promise<void> {
  const { namespace, uid } = pod.metadata;
  for (const { name, claim } of claimedVolumes(pod)) {
    const other = (await api.podsWithClaim(namespace, claim)).find(({ metadata }) => metadata.uid !== uid);
    if (other === undefined) continue;
    throw refused(nameOf(pod), {
      why: `pod ${nameOf(other)} uses the claim ${claim} of its volume ${name}, too`,
      mend: 'Give each a claim of its own.',
    });
  }
}

export async function claimFindings(api: KubernetesApi, namespace: string, pod: Pod): Promise<Finding[]> {
  const findings: Finding[] = [];
  const writes = new Set(claimedVolumes(pod).map(({ name }) => name));
  for (const { name, persistentVolumeClaim } of pod.spec.volumes) {
    if (persistentVolumeClaim === undefined) continue;
    const { claimName } = persistentVolumeClaim;
    const finding = await findingOfClaim(api, namespace, { volume: name, claim: claimName, writes: writes.has(name) });
    if (finding !== undefined) findings.push(finding);
  }
  return findings;
}

async function findingOfClaim(
  api: KubernetesApi,
  namespace: string,
  { volume, claim, writes }: { volume: string; claim: string; writes: boolean },
): Promise<Finding | undefined> {
  const kubectl = `kubectl --namespace ${namespace}`;
  const found = await api.claim(namespace, claim);
  if (found === undefined) {
    return findingOf(
      'error',
      'volume.missing',
      `There is no claim ${claim} here in namespace ${namespace}`,
      `The pod mounts it as ${volume}; ${writes ? 'what is in it moves into that of this cluster' : 'each cluster has its own'}.`,
      `Make one of that name here${writes ? ', empty' : ''} (PersistentVolumeClaim)`,
    );
  }
  if (found.status.phase !== 'Bound') {
    return findingOf(
      'error',
      'volume.unbound',
      `The claim ${claim} here in namespace ${namespace} has no volume yet (${found.status.phase})`,
      'The pod is put on this node without asking the scheduler, which binds claims when it has chosen a node.',
      `${kubectl} describe persistentvolumeclaim ${claim}`,
    );
  }
  const [user] = writes ? await api.podsWithClaim(namespace, claim) : [];
  if (user === undefined) return undefined;
  return findingOf(
    'error',
    'volume.used',
    `Pod ${nameOf(user)} here uses the claim ${claim} already`,
    `It is that of the pod's volume ${volume}, which is one service's.`,
    `${kubectl} delete pod ${user.metadata.name}, if nobody needs it`,
  );
}
