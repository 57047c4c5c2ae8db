import { hostname } from 'node:os';
import { UmsError } from '#src/telemetry/errors.ts';
import { Agent, request } from 'undici';
import { z } from 'zod';
import { type Answerer, messageIn, parseAnswer, readText, required } from '../oci/answers.ts';
import { type ClusterAccess, findKubeconfig, readKubeconfig } from './config.ts';
import {
  type Claim,
  claimSchema,
  type Deployment,
  deploymentSchema,
  namedSchema,
  type Node,
  nodeListSchema,
  type Pod,
  podListSchema,
  podSchema,
  type ReplicaSet,
  replicaSetListSchema,
  replicaSetSchema,
  reviewSchema,
  runtimeClassSchema,
  type StatefulSet,
  statefulSetSchema,
  versionSchema,
} from './schema.ts';

/** The API server of the cluster that this host is a node of, typed. It is asked every time; nothing is remembered here. */
const LIMIT_MS = 30_000;
const MERGE_PATCH = 'application/merge-patch+json';
const NOT_FOUND = 404;
const CONFLICT = 409;

interface Call {
  method?: 'GET' | 'POST' | 'DELETE' | 'PATCH';
  body?: unknown;
  /** Answers of this status are no failures; the result is undefined then. */
  absent?: readonly number[];
}

/** The API server answered with an error; `status` is HTTP's. */
export class KubernetesRefusal extends UmsError {
  readonly status: number;

  constructor(status: number, path: string, message: string) {
    super('UMS_E_ENGINE', { message: `Kubernetes refused: ${message}`, fault: 'ums', detail: `${path}: ${status}` });
    this.status = status;
  }
}

export type Verb = 'get' | 'list' | 'create' | 'delete' | 'patch';
type App = 'deployments' | 'replicasets' | 'statefulsets';
export type Resource = 'pods' | 'persistentvolumeclaims' | App;

const isApp = (resource: Resource): resource is App => resource !== 'pods' && resource !== 'persistentvolumeclaims';

/** What a merge patch may say here. With a resourceVersion in it, it is refused when the object is no longer that one. */
export interface Patch {
  metadata?: {
    resourceVersion?: string;
    annotations?: Record<string, string | null>;
    labels?: Record<string, string>;
    finalizers?: readonly string[];
    ownerReferences?: null;
  };
  spec?: { paused: boolean } | { updateStrategy: object };
}

export class KubernetesApi {
  readonly #access: ClusterAccess;
  readonly #dispatcher: Agent;

  constructor(access: ClusterAccess) {
    this.#access = access;
    const { ca, certificate: cert, key, serverName: servername } = access;
    this.#dispatcher = new Agent({
      connections: 8,
      pipelining: 1,
      connect: {
        ...(ca === undefined ? {} : { ca }),
        ...(cert === undefined ? {} : { cert }),
        ...(key === undefined ? {} : { key }),
        ...(servername === undefined ? {} : { servername }),
      },
    });
  }

  async close(): Promise<void> {
    await this.#dispatcher.close();
  }

  async #call<T>(path: string, schema: z.ZodType<T>, options: Call = {}): Promise<T | undefined> {
    const { method = 'GET', body, absent = [] } = options;
    const { server, token } = this.#access;
    const answer = await this.#reach(`${method} ${path}`, () =>
      request(`${server}${path}`, {
        dispatcher: this.#dispatcher,
        method,
        headersTimeout: LIMIT_MS,
        bodyTimeout: LIMIT_MS,
        headers: {
          accept: 'application/json',
          ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
          ...(body === undefined ? {} : { 'content-type': method === 'PATCH' ? MERGE_PATCH : 'application/json' }),
        },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      }),
    );
    const text = await this.#reach(`${method} ${path}`, () => readText(answer.body, path, ANSWERER.name));
    if (absent.includes(answer.statusCode)) return undefined;
    if (answer.statusCode >= 400) throw new KubernetesRefusal(answer.statusCode, path, messageIn(text));
    return parse(schema, text, path);
  }

  async #reach<T>(what: string, ask: () => Promise<T>): Promise<T> {
    try {
      return await ask();
    } catch (error) {
      if (error instanceof UmsError) throw error;
      throw new UmsError('UMS_E_ENGINE', {
        message: `Kubernetes does not answer at ${this.#access.server}: ${error instanceof Error ? error.message : String(error)}`,
        fault: 'ums',
        mend: `See whether the API server runs, and whether ${this.#access.file} leads to it: kubectl version`,
        detail: what,
        cause: error,
      });
    }
  }

  async version(): Promise<string> {
    return required(await this.#call('/version', versionSchema)).gitVersion;
  }

  async podsOn(node: string): Promise<Pod[]> {
    const query = `fieldSelector=${encodeURIComponent(`spec.nodeName=${node}`)}`;
    return required(await this.#call(`/api/v1/pods?${query}`, podListSchema)).items;
  }

  pod(namespace: string, name: string): Promise<Pod | undefined> {
    return this.#call(podPath(namespace, name), podSchema, { absent: [NOT_FOUND] });
  }

  /** With `dryRun` everything is checked and decided, and nothing is made. */
  async createPod(namespace: string, manifest: unknown, dryRun = false): Promise<Pod> {
    const query = dryRun ? '?dryRun=All' : '';
    const body = { method: 'POST', body: manifest } as const;
    return required(await this.#call(`/api/v1/namespaces/${segment(namespace)}/pods${query}`, podSchema, body));
  }

  /** Exactly this pod, at once: one of the same name that was made meanwhile is left alone. */
  async deletePod(namespace: string, name: string, uid: string): Promise<void> {
    const body = { gracePeriodSeconds: 0, preconditions: { uid }, propagationPolicy: 'Background' };
    await this.#call(podPath(namespace, name), z.unknown(), { method: 'DELETE', body, absent: [NOT_FOUND, CONFLICT] });
  }

  /** As its owner would, with the time that it has to end in. */
  async endPod(namespace: string, name: string, uid: string): Promise<void> {
    const body = { preconditions: { uid }, propagationPolicy: 'Background' };
    await this.#call(podPath(namespace, name), z.unknown(), { method: 'DELETE', body, absent: [NOT_FOUND, CONFLICT] });
  }

  /** Undefined when it is gone, or no longer what the patch expects. */
  patchPod(namespace: string, name: string, body: Patch): Promise<Pod | undefined> {
    return this.#call(podPath(namespace, name), podSchema, { method: 'PATCH', body, absent: [NOT_FOUND, CONFLICT] });
  }

  deployment(namespace: string, name: string): Promise<Deployment | undefined> {
    return this.#call(appPath(namespace, 'deployments', name), deploymentSchema, { absent: [NOT_FOUND] });
  }

  patchDeployment(namespace: string, name: string, body: Patch): Promise<Deployment | undefined> {
    const path = appPath(namespace, 'deployments', name);
    return this.#call(path, deploymentSchema, { method: 'PATCH', body, absent: [NOT_FOUND, CONFLICT] });
  }

  replicaSet(namespace: string, name: string): Promise<ReplicaSet | undefined> {
    return this.#call(appPath(namespace, 'replicasets', name), replicaSetSchema, { absent: [NOT_FOUND] });
  }

  async replicaSets(namespace: string): Promise<ReplicaSet[]> {
    return required(await this.#call(appPath(namespace, 'replicasets'), replicaSetListSchema)).items;
  }

  patchReplicaSet(namespace: string, name: string, body: Patch): Promise<ReplicaSet | undefined> {
    const path = appPath(namespace, 'replicasets', name);
    return this.#call(path, replicaSetSchema, { method: 'PATCH', body, absent: [NOT_FOUND, CONFLICT] });
  }

  /** Exactly this one, and its pods stay, without an owner. */
  async orphanPodsOf(namespace: string, { metadata: { name, uid, resourceVersion } }: ReplicaSet): Promise<void> {
    const body = { preconditions: { uid, resourceVersion }, propagationPolicy: 'Orphan' };
    const path = appPath(namespace, 'replicasets', name);
    await this.#call(path, z.unknown(), { method: 'DELETE', body, absent: [NOT_FOUND, CONFLICT] });
  }

  statefulSet(namespace: string, name: string): Promise<StatefulSet | undefined> {
    return this.#call(appPath(namespace, 'statefulsets', name), statefulSetSchema, { absent: [NOT_FOUND] });
  }

  patchStatefulSet(namespace: string, name: string, body: Patch): Promise<StatefulSet | undefined> {
    const path = appPath(namespace, 'statefulsets', name);
    return this.#call(path, statefulSetSchema, { method: 'PATCH', body, absent: [NOT_FOUND, CONFLICT] });
  }

  /** Exactly this one as it is. Its pods stay as long as something keeps it from going. */
  async deleteStatefulSet(namespace: string, { metadata: { name, uid, resourceVersion } }: StatefulSet): Promise<void> {
    const body = { preconditions: { uid, resourceVersion }, propagationPolicy: 'Background' };
    const path = appPath(namespace, 'statefulsets', name);
    await this.#call(path, z.unknown(), { method: 'DELETE', body, absent: [NOT_FOUND, CONFLICT] });
  }

  /** Undefined when there is one of that name. */
  createStatefulSet(namespace: string, manifest: object): Promise<StatefulSet | undefined> {
    const path = appPath(namespace, 'statefulsets');
    return this.#call(path, statefulSetSchema, { method: 'POST', body: manifest, absent: [CONFLICT] });
  }

  claim(namespace: string, name: string): Promise<Claim | undefined> {
    const path = `/api/v1/namespaces/${segment(namespace)}/persistentvolumeclaims/${segment(name)}`;
    return this.#call(path, claimSchema, { absent: [NOT_FOUND] });
  }

  /** Those that have this claim among their volumes, wherever they run; not those that have ended. */
  async podsWithClaim(namespace: string, claim: string): Promise<Pod[]> {
    const pods = required(await this.#call(`/api/v1/namespaces/${segment(namespace)}/pods`, podListSchema)).items;
    return pods.filter(
      ({ spec, status }) =>
        !['Succeeded', 'Failed'].includes(status?.phase ?? '') &&
        spec.volumes.some(({ persistentVolumeClaim }) => persistentVolumeClaim?.claimName === claim),
    );
  }

  async nodes(): Promise<Node[]> {
    return required(await this.#call('/api/v1/nodes', nodeListSchema)).items;
  }

  /** True for an object of the core API that is there. */
  async has(
    namespace: string | undefined,
    kind: 'secrets' | 'configmaps' | 'namespaces',
    name: string,
  ): Promise<boolean> {
    const scope = namespace === undefined ? '' : `/namespaces/${segment(namespace)}`;
    const path = `/api/v1${scope}/${kind}/${segment(name)}`;
    return (await this.#call(path, namedSchema, { absent: [NOT_FOUND] })) !== undefined;
  }

  async runtimeHandler(name: string): Promise<string | undefined> {
    const path = `/apis/node.k8s.io/v1/runtimeclasses/${segment(name)}`;
    return (await this.#call(path, runtimeClassSchema, { absent: [NOT_FOUND] }))?.handler;
  }

  /** Whether whoever the kubeconfig names may do this with these objects of a namespace. */
  async may(verb: Verb, resource: Resource, namespace: string): Promise<boolean> {
    const resourceAttributes = { verb, resource, group: isApp(resource) ? 'apps' : '', namespace };
    const body = {
      apiVersion: 'authorization.k8s.io/v1',
      kind: 'SelfSubjectAccessReview',
      spec: { resourceAttributes },
    };
    const path = '/apis/authorization.k8s.io/v1/selfsubjectaccessreviews';
    return required(await this.#call(path, reviewSchema, { method: 'POST', body })).status.allowed;
  }
}

function segment(name: string): string {
  return encodeURIComponent(name);
}

function podPath(namespace: string, name: string): string {
  return `/api/v1/namespaces/${segment(namespace)}/pods/${segment(name)}`;
}

function appPath(namespace: string, kind: App, name?: string): string {
  const all = `/apis/apps/v1/namespaces/${segment(namespace)}/${kind}`;
  return name === undefined ? all : `${all}/${segment(name)}`;
}

const ANSWERER: Answerer = {
  name: 'Kubernetes',
  supported: 'Kubernetes 1.20 and later are',
  version: 'kubectl version',
};

function parse<T>(schema: z.ZodType<T>, text: string, path: string): T {
  return parseAnswer(schema, text, path, ANSWERER);
}

/** The cluster as this host's kubeconfig names it, connected when first asked, anew when the file leads elsewhere. */
export class Cluster {
  #known: { text: string; api: KubernetesApi } | undefined;

  static isInstalled(): boolean {
    return findKubeconfig() !== undefined;
  }

  async api(): Promise<KubernetesApi> {
    const file = findKubeconfig();
    if (file === undefined) {
      throw new UmsError('UMS_E_ENGINE_MISSING', {
        message: 'There is no kubeconfig here',
        fault: 'user',
        mend: 'Name one by UMS_KUBECONFIG in the environment of the agent.',
      });
    }
    const access = readKubeconfig(file);
    const text = JSON.stringify(access);
    if (this.#known?.text === text) return this.#known.api;
    const before = this.#known?.api;
    this.#known = { text, api: new KubernetesApi(access) };
    await before?.close();
    return this.#known.api;
  }

  /** The node that this host is: of the same name, unless UMS_KUBERNETES_NODE says another one. */
  async node(): Promise<Node> {
    const wanted = process.env['UMS_KUBERNETES_NODE'] ?? hostname();
    const nodes = await (await this.api()).nodes();
    const found = nodes.find(({ metadata }) => metadata.name === wanted || metadata.name === wanted.split('.')[0]);
    if (found !== undefined) return found;
    throw new UmsError('UMS_E_ENGINE', {
      message: `No node of the cluster is called ${wanted}`,
      fault: 'user',
      mend: 'Say which node this host is by UMS_KUBERNETES_NODE in the environment of the agent (kubectl get nodes).',
    });
  }
}
