import type { ChildProcess } from 'node:child_process';
import type { Host } from '#lab/host.ts';
import type { ErrorCode } from '#src/telemetry/error-codes.ts';
import { apply, kubectl, untilReady } from './deployments.ts';
import { until } from './moves.ts';

type PodName = 'plain' | 'privileged';

/** What a cluster's administrator may have decided, or what has happened to it, that keeps a pod from moving. */
export interface Circumstance {
  what: string;
  code: ErrorCode;
  words: RegExp;
  /** The pod that it is about; `make` makes another one than the plain one. */
  pod: PodName;
  make: (source: Host, destination: Host) => Promise<void>;
  undo: (source: Host, destination: Host) => Promise<void>;
}

interface ClusterObject {
  apiVersion: string;
  kind: string;
  metadata: { name: string };
  spec?: object;
  webhooks?: object[];
}

const SEEN_LIMIT_MS = 20_000;
const READY_LIMIT_MS = 25_000;
const IMAGE = 'localhost/busybox:latest';

function podOf(name: PodName): object {
  const container = {
    name: 'main',
    image: IMAGE,
    imagePullPolicy: 'IfNotPresent',
    command: ['busybox', 'sleep', '1000'],
  };
  const more = name === 'privileged' ? { securityContext: { privileged: true } } : {};
  const spec = { terminationGracePeriodSeconds: 0, containers: [{ ...container, ...more }] };
  return { apiVersion: 'v1', kind: 'Pod', metadata: { name }, spec };
}

export async function runPod(host: Host, pod: PodName): Promise<void> {
  await apply(host, podOf(pod));
  await untilReady(host, pod, READY_LIMIT_MS);
}

export async function removePod(host: Host, pod: PodName): Promise<void> {
  await kubectl(host, 'delete', 'pod', pod, '--force', '--grace-period=0', '--ignore-not-found');
}

/** Its API server acts on what it has heard of, which may take a moment: until it would, or would not, take such a pod. */
async function takes(host: Host, pod: PodName, does: boolean): Promise<void> {
  const manifest = JSON.stringify(podOf(pod));
  const words = ['create', '--dry-run=server', '-f', '-'];
  await until(`the cluster of ${host.name} ${does ? 'takes' : 'refuses'} a pod`, SEEN_LIMIT_MS, async () => {
    const { exitCode } = await host.exec('kubectl', words, { input: manifest, okExitCodes: [0, 1] });
    return (exitCode === 0) === does ? true : undefined;
  });
}

/** An object of the destination's cluster that has it refuse a pod. */
function refusing(pod: PodName, object: ClusterObject) {
  return {
    pod,
    make: async (_: Host, host: Host) => {
      await apply(host, object);
      await takes(host, pod, false);
    },
    undo: async (_: Host, host: Host) => {
      await kubectl(host, 'delete', object.kind, object.metadata.name, '--ignore-not-found');
      await takes(host, pod, true);
    },
  };
}

/** The user `restricted` may look at everything that an agent looks at, and change nothing. */
const LOOKING = {
  role: {
    apiVersion: 'rbac.authorization.k8s.io/v1',
    kind: 'ClusterRole',
    metadata: { name: 'looking' },
    rules: [
      { apiGroups: [''], resources: ['nodes', 'namespaces', 'pods'], verbs: ['get', 'list'] },
      { apiGroups: ['node.k8s.io'], resources: ['runtimeclasses'], verbs: ['get', 'list'] },
    ],
  },
  binding: {
    apiVersion: 'rbac.authorization.k8s.io/v1',
    kind: 'ClusterRoleBinding',
    metadata: { name: 'looking' },
    subjects: [{ kind: 'User', name: 'restricted', apiGroup: 'rbac.authorization.k8s.io' }],
    roleRef: { kind: 'ClusterRole', name: 'looking', apiGroup: 'rbac.authorization.k8s.io' },
  },
};

async function asRestricted(host: Host): Promise<void> {
  await apply(host, LOOKING.role);
  await apply(host, LOOKING.binding);
  const can = ['--context', 'restricted', 'auth', 'can-i', 'list', 'nodes'];
  await until('the role counts', SEEN_LIMIT_MS, async () => {
    const { stdout } = await host.exec('kubectl', can, { okExitCodes: [0, 1] });
    return stdout.trim() === 'yes' ? true : undefined;
  });
  await kubectl(host, 'config', 'use-context', 'restricted');
}

async function asAdmin(host: Host): Promise<void> {
  await kubectl(host, 'config', 'use-context', 'admin');
  await kubectl(host, 'delete', 'clusterrolebinding,clusterrole', 'looking', '--ignore-not-found');
}

const HOOK_PORT = 9443;
const PKI = '/etc/kubernetes/pki';
/** An admission webhook as policy engines have one, with the API server's own certificate. */
const HOOK = `
const { readFileSync } = require('node:fs');
const [key, cert] = ['key', 'crt'].map((end) => readFileSync('${PKI}/apiserver.' + end));
require('node:https').createServer({ key, cert }, async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const { uid, object } = JSON.parse(Buffer.concat(chunks)).request;
  const allowed = !object.spec.containers.some((container) => container.securityContext?.privileged);
  const status = { message: 'privileged containers are forbidden here' };
  const answer = { apiVersion: 'admission.k8s.io/v1', kind: 'AdmissionReview', response: { uid, allowed, status } };
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify(answer));
}).listen(${HOOK_PORT}, '127.0.0.1');
`;
let hook: ChildProcess | undefined;

function hookConfiguration(host: Host): ClusterObject {
  const caBundle = Buffer.from(host.readFile(`${PKI}/ca.crt`)).toString('base64');
  const rule = { apiGroups: [''], apiVersions: ['v1'], operations: ['CREATE'], resources: ['pods'] };
  const webhook = {
    name: 'privileged.example.com',
    clientConfig: { url: `https://127.0.0.1:${HOOK_PORT}/`, caBundle },
    rules: [rule],
    sideEffects: 'None',
    admissionReviewVersions: ['v1'],
    timeoutSeconds: 5,
  };
  return {
    apiVersion: 'admissionregistration.k8s.io/v1',
    kind: 'ValidatingWebhookConfiguration',
    metadata: { name: 'privileged' },
    webhooks: [webhook],
  };
}

const privilegedForbidden: Pick<Circumstance, 'pod' | 'make' | 'undo'> = {
  pod: 'privileged',
  make: async (source, destination) => {
    await runPod(source, 'privileged');
    hook = destination.spawn('/opt/ums/node/bin/node', ['-e', HOOK], { stdio: 'ignore' });
    await until('the webhook listens', SEEN_LIMIT_MS, async () => {
      const { stdout } = await destination.exec('ss', ['-Hltn', `sport = :${HOOK_PORT}`]);
      return stdout === '' ? undefined : true;
    });
    await refusing('privileged', hookConfiguration(destination)).make(source, destination);
  },
  undo: async (source, destination) => {
    await refusing('privileged', hookConfiguration(destination)).undo(source, destination);
    hook?.kill('SIGTERM');
    await removePod(source, 'privileged');
  },
};

async function setReady(host: Host, status: 'True' | 'False'): Promise<void> {
  const condition = { type: 'Ready', status, reason: 'Test', message: 'the test says so' };
  const patch = JSON.stringify({ status: { conditions: [condition] } });
  await kubectl(host, 'patch', 'node', host.name, '--subresource=status', '--patch', patch);
}

/** The kubelet is kept from saying otherwise, for a shorter time than after which its cluster would wonder. */
async function kubelet(host: Host, signal: 'STOP' | 'CONT'): Promise<void> {
  await host.exec('sh', ['-ec', `kill -${signal} $(pidof kubelet)`]);
}

export const CIRCUMSTANCES: readonly Circumstance[] = [
  {
    what: 'its agent may not make pods there',
    code: 'UMS_E_PREFLIGHT',
    words: /may not create pods, delete pods/,
    pod: 'plain',
    make: (_, destination) => asRestricted(destination),
    undo: (_, destination) => asAdmin(destination),
  },
  {
    what: 'its agent may not delete it here',
    code: 'UMS_E_ENGINE',
    words: /may not delete pods in namespace default/,
    pod: 'plain',
    make: asRestricted,
    undo: asAdmin,
  },
  {
    what: 'a quota is exceeded',
    code: 'UMS_E_PREFLIGHT',
    words: /exceeded quota: none/,
    ...refusing('plain', {
      apiVersion: 'v1',
      kind: 'ResourceQuota',
      metadata: { name: 'none' },
      spec: { hard: { pods: '0' } },
    }),
  },
  {
    what: 'admission denies it: pods must have a limit',
    code: 'UMS_E_PREFLIGHT',
    words: /maximum memory usage per Pod is 64Mi/,
    ...refusing('plain', {
      apiVersion: 'v1',
      kind: 'LimitRange',
      metadata: { name: 'small' },
      spec: { limits: [{ type: 'Pod', max: { memory: '64Mi' } }] },
    }),
  },
  {
    what: 'privileged mode is forbidden',
    code: 'UMS_E_PREFLIGHT',
    words: /privileged containers are forbidden here/,
    ...privilegedForbidden,
  },
  {
    what: 'its image is no longer there',
    code: 'UMS_E_ENGINE',
    words: /no image localhost\/busybox:latest any more/,
    pod: 'plain',
    make: async (source) => void (await source.exec('ctr', ['-n', 'k8s.io', 'images', 'rm', '--sync', IMAGE])),
    undo: async (source) => void (await source.importImage('busybox', 'kubernetes')),
  },
  {
    what: 'the node is cordoned',
    code: 'UMS_E_PREFLIGHT',
    words: /takes no new pods \(cordoned\)/,
    pod: 'plain',
    make: async (_, destination) => void (await kubectl(destination, 'cordon', destination.name)),
    undo: async (_, destination) => void (await kubectl(destination, 'uncordon', destination.name)),
  },
  {
    what: 'the node is not ready',
    code: 'UMS_E_PREFLIGHT',
    words: /is not ready/,
    pod: 'plain',
    make: async (_, destination) => {
      await kubelet(destination, 'STOP');
      await setReady(destination, 'False');
    },
    undo: async (_, destination) => {
      await setReady(destination, 'True');
      await kubelet(destination, 'CONT');
    },
  },
];
