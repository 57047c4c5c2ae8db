import { UmsError } from '#src/telemetry/errors.ts';
import { poll } from '../oci/cgroup.ts';
import type { KubernetesApi, Resource, Verb } from './api.ts';
import { OWNER_ANNOTATION } from './manifest.ts';
import { AWAY_ANNOTATION, FINALIZER, HELD_ANNOTATION, type Owner } from './owner-told.ts';

/** What holding any owner of a pod has in common: rights, refusals, and waiting for a controller. */
const SEEN_LIMIT_MS = 30_000;
const SEEN_INTERVAL_MS = 25;
/** So often is a change tried again that met another one. */
export const CONFLICTS_MAX = 8;

export interface PodIdentity {
  name: string;
  uid: string;
}

export interface Unfit {
  why: string;
  mend: string;
}

export type Right = readonly [Verb, Resource];

/** Those of the rights that the agent does not have, in words. */
export async function missingOf(api: KubernetesApi, namespace: string, rights: readonly Right[]): Promise<string[]> {
  const allowed = await Promise.all(rights.map(([verb, resource]) => api.may(verb, resource, namespace)));
  return rights.filter((_, at) => allowed[at] !== true).map(([verb, resource]) => `${verb} ${resource}`);
}

export async function requireRights(
  api: KubernetesApi,
  namespace: string,
  name: string,
  rights: readonly Right[],
): Promise<void> {
  const missing = await missingOf(api, namespace, rights);
  if (missing.length === 0) return;
  throw refused(name, {
    why: `the agent may not ${missing.join(', ')} in namespace ${namespace}, and its owner must be held`,
    mend: 'Grant its user these verbs (kubectl create role, kubectl create rolebinding).',
  });
}

export function refused(name: string, { why, mend }: Unfit): UmsError {
  return new UmsError('UMS_E_SPECIFICATION', {
    message: `${name} cannot be moved: ${why}`,
    fault: 'user',
    state: 'Nothing was changed.',
    mend,
  });
}

export function changed({ kind, name }: { kind: string; name: string }): UmsError {
  return new UmsError('UMS_E_ENGINE', {
    message: `${kind} ${name} was scaled, updated or deleted while its service was about to leave`,
    fault: 'user',
    mend: 'Try again when it has settled: kubectl rollout status.',
  });
}

/** What an owner notes when the service of this pod is about to leave. */
export function leaving(owner: Owner): Record<string, string> {
  return { [HELD_ANNOTATION]: owner.pod, [AWAY_ANNOTATION]: `is being moved by ums since ${new Date().toISOString()}` };
}

/** What it notes when it has left, for people to see. */
export function leftFor(where: string): Record<string, string> {
  return { [AWAY_ANNOTATION]: `is at ${where} since ${new Date().toISOString()}, moved there by ums` };
}

/** When its service is its own again. */
export const NOTHING_NOTED = { [HELD_ANNOTATION]: null, [AWAY_ANNOTATION]: null };

export function othersThanOurs(finalizers: readonly string[]): string[] {
  return finalizers.filter((each) => each !== FINALIZER);
}

/** The pod belongs to nothing, and is taken by whoever looks for its labels. */
export async function disownPod(api: KubernetesApi, namespace: string, name: string): Promise<void> {
  await api.patchPod(namespace, name, {
    metadata: { ownerReferences: null, annotations: { [OWNER_ANNOTATION]: null } },
  });
}

/** Waits until a controller says that it has seen something, so that it does not act on what it saw before. */
export async function seen(what: string, look: () => Promise<boolean>): Promise<void> {
  if (await poll(look, SEEN_LIMIT_MS, SEEN_INTERVAL_MS)) return;
  throw new UmsError('UMS_E_TIMEOUT', {
    message: `Kubernetes did not say within ${SEEN_LIMIT_MS} ms that ${what}`,
    fault: 'ums',
    mend: 'See whether kube-controller-manager runs, and its log.',
  });
}
