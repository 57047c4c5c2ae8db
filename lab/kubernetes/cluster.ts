import { setTimeout as sleep } from 'node:timers/promises';
import { UmsError } from '#src/telemetry/errors.ts';
import { CONTAINERD, importIntoContainerd, KUBERNETES_NAMESPACE, PAUSE_IMAGE } from '../containerd.ts';
import { startDaemon } from '../daemon.ts';
import type { Host } from '../host.ts';
import { PATIENCE } from '../patience.ts';
import { programsOnHost } from './binaries.ts';
import {
  API_SERVER,
  API_SERVICE_ADDRESS,
  CONFIG,
  CONTROLLER_MANAGER,
  ETCD_DAEMON,
  KUBELET,
  kubeletSettings,
  networkSettings,
  PROXY,
  SCHEDULER,
} from './daemons.ts';

const SCRIPTS = '/opt/ums/app/lab/kubernetes';
const READY_LIMIT_MS = 120_000 * PATIENCE;
const POLL_MS = 200;

/** Makes the host a cluster of one node, if it is none yet, and waits until it takes pods. */
export async function startKubernetes(host: Host): Promise<void> {
  await host.exec('sh', [`${SCRIPTS}/host.sh`, programsOnHost()]);
  await host.exec('sh', [`${SCRIPTS}/pki.sh`, host.name, host.address, API_SERVICE_ADDRESS]);
  await host.exec('mkdir', ['-p', '/etc/cni/net.d']);
  host.writeFile('/etc/cni/net.d/10-pods.conflist', JSON.stringify(networkSettings(host), undefined, 2));
  host.writeFile(`${CONFIG}/kubelet.json`, JSON.stringify(kubeletSettings(), undefined, 2));
  await Promise.all([startControlPlane(host), startDaemon(host, CONTAINERD).then(() => importImages(host))]);
  await Promise.all([startDaemon(host, KUBELET(host)), startDaemon(host, PROXY(host))]);
  for (const thing of [RESTRICTED, UMS_CLASS]) await apply(host, thing);
  await takesPods(host);
}

async function startControlPlane(host: Host): Promise<void> {
  await startDaemon(host, ETCD_DAEMON());
  await startDaemon(host, API_SERVER(host));
  await Promise.all([startDaemon(host, CONTROLLER_MANAGER()), startDaemon(host, SCHEDULER())]);
}

async function importImages(host: Host): Promise<void> {
  await importPause(host);
  for (const name of await host.preparedImages()) await host.importImage(name, 'kubernetes');
}

/** The image of the process that holds a pod's namespaces: that program and nothing else. */
async function importPause(host: Host): Promise<void> {
  const there = await host.exec('ctr', ['-n', KUBERNETES_NAMESPACE, 'images', 'ls', '-q', `name==${PAUSE_IMAGE}`]);
  if (there.stdout.trim() === PAUSE_IMAGE) return;
  const tree = '/run/kubernetes/pause.tar';
  await host.exec('tar', ['--numeric-owner', '--mtime=@0', '-C', programsOnHost(), '-cf', tree, 'pause']);
  const command = ['/pause'];
  await importIntoContainerd(host, { tree, image: PAUSE_IMAGE, path: '/', namespace: KUBERNETES_NAMESPACE, command });
  await host.exec('rm', [tree]);
}

/** A user who may look at what is in the namespace `default` and nothing more: the context `restricted`. */
const RESTRICTED = {
  apiVersion: 'rbac.authorization.k8s.io/v1',
  kind: 'RoleBinding',
  metadata: { name: 'restricted', namespace: 'default' },
  subjects: [{ kind: 'User', name: 'restricted', apiGroup: 'rbac.authorization.k8s.io' }],
  roleRef: { kind: 'ClusterRole', name: 'view', apiGroup: 'rbac.authorization.k8s.io' },
};

/** The runtime class through which the agent brings pods to life (docs/drivers.md). */
const UMS_CLASS = {
  apiVersion: 'node.k8s.io/v1',
  kind: 'RuntimeClass',
  metadata: { name: 'ums' },
  handler: 'ums',
};

async function apply(host: Host, thing: unknown): Promise<void> {
  await host.exec('kubectl', ['apply', '-f', '-'], { input: JSON.stringify(thing) });
}

/** Until then pods are refused: the node is not ready, or the account that pods run as is not there. */
async function takesPods(host: Host): Promise<void> {
  const questions = [
    ['get', 'serviceaccount', 'default', '-o', 'jsonpath={.secrets[0].name}'],
    ['get', 'node', host.name, '-o', 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'],
  ];
  const limit = Date.now() + READY_LIMIT_MS;
  for (const question of questions) {
    for (;;) {
      const { stdout } = await host.exec('kubectl', question, { okExitCodes: [0, 1] });
      if (stdout.trim() !== '' && !/^(False|Unknown)$/.test(stdout.trim())) break;
      if (Date.now() > limit) {
        throw new UmsError('UMS_E_LAB', {
          message: `The cluster on test host ${host.name} takes no pods`,
          fault: 'ums',
          mend: `Read what it says: ./ums lab exec ${host.name} -- kubectl describe node ${host.name}`,
        });
      }
      await sleep(POLL_MS);
    }
  }
}
