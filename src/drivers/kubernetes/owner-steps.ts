import { UmsError } from '#src/telemetry/errors.ts';
import { poll } from '../oci/cgroup.ts';
import type { KubernetesApi, Resource, Verb } from './api.ts';

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

/** Waits until a controller says that it has seen something, so that it does not act on what it saw before. */
export async function seen(what: string, look: () => Promise<boolean>): Promise<void> {
  if (await poll(look, SEEN_LIMIT_MS, SEEN_INTERVAL_MS)) return;
  throw new UmsError('UMS_E_TIMEOUT', {
    message: `Kubernetes did not say within ${SEEN_LIMIT_MS} ms that ${what}`,
    fault: 'ums',
    mend: 'See whether kube-controller-manager runs, and its log.',
  });
}
