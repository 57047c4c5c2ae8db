import type { Daemon } from '../daemon.ts';
import type { Host } from '../host.ts';
import { programsOnHost } from './binaries.ts';

/**
 * The daemons of one host's cluster: a control plane and one node. Each host is a cluster of its own, because a cluster is
 * what one administrator has.
 */
export const CONFIG = '/etc/kubernetes';
const PKI = `${CONFIG}/pki`;
export const SERVICE_RANGE = '10.96.0.0/16';
/** The address in it that Kubernetes gives to its own API. */
export const API_SERVICE_ADDRESS = '10.96.0.1';
const ETCD = 'http://127.0.0.1:2379';

/** Every node has other addresses for its pods, so that they can be told apart in what clients see. */
export function podRange(host: Host): string {
  return `10.244.${host.number}.0/24`;
}

function healthAt(url: string): [string, ...string[]] {
  return ['curl', '--silent', '--fail', '--insecure', '--max-time', '2', '--output', '/dev/null', url];
}

function daemon(program: string, question: Daemon['question'], args: readonly string[]): Daemon {
  return { title: program, log: `${program}.log`, program: `${programsOnHost()}/${program}`, args, question };
}

export const ETCD_DAEMON = (): Daemon =>
  daemon('etcd', healthAt(`${ETCD}/health`), [
    '--data-dir=/var/lib/etcd',
    `--listen-client-urls=${ETCD}`,
    `--advertise-client-urls=${ETCD}`,
    // The disk of a test host is as lasting as the lab, and every write would wait for it.
    '--unsafe-no-fsync',
  ]);

export const API_SERVER = (host: Host): Daemon =>
  daemon(
    'kube-apiserver',
    ['kubectl', 'get', '--raw', '/readyz'],
    [
      `--etcd-servers=${ETCD}`,
      `--advertise-address=${host.address}`,
      '--bind-address=0.0.0.0',
      '--secure-port=6443',
      `--service-cluster-ip-range=${SERVICE_RANGE}`,
      `--tls-cert-file=${PKI}/apiserver.crt`,
      `--tls-private-key-file=${PKI}/apiserver.key`,
      `--client-ca-file=${PKI}/ca.crt`,
      `--kubelet-certificate-authority=${PKI}/ca.crt`,
      `--kubelet-client-certificate=${PKI}/apiserver-to-kubelet.crt`,
      `--kubelet-client-key=${PKI}/apiserver-to-kubelet.key`,
      '--service-account-issuer=https://kubernetes.default.svc',
      `--service-account-key-file=${PKI}/sa.pub`,
      `--service-account-signing-key-file=${PKI}/sa.key`,
      '--authorization-mode=Node,RBAC',
      '--enable-admission-plugins=NodeRestriction',
      '--allow-privileged=true',
    ],
  );

export const CONTROLLER_MANAGER = (): Daemon =>
  daemon('kube-controller-manager', healthAt('https://127.0.0.1:10257/healthz'), [
    `--kubeconfig=${CONFIG}/controller-manager.conf`,
    '--bind-address=127.0.0.1',
    '--leader-elect=false',
    '--use-service-account-credentials=true',
    `--root-ca-file=${PKI}/ca.crt`,
    `--service-account-private-key-file=${PKI}/sa.key`,
  ]);

export const SCHEDULER = (): Daemon =>
  daemon('kube-scheduler', healthAt('https://127.0.0.1:10259/healthz'), [
    `--kubeconfig=${CONFIG}/scheduler.conf`,
    '--bind-address=127.0.0.1',
    '--leader-elect=false',
  ]);

export const KUBELET = (host: Host): Daemon => ({
  ...daemon('kubelet', healthAt('http://127.0.0.1:10248/healthz'), [
    `--config=${CONFIG}/kubelet.json`,
    `--kubeconfig=${CONFIG}/kubelet.conf`,
    '--container-runtime=remote',
    '--container-runtime-endpoint=unix:///run/containerd/containerd.sock',
    `--hostname-override=${host.name}`,
    `--node-ip=${host.address}`,
  ]),
  // It looks for a cloud around it, and would wait ten seconds for one.
  env: { AWS_EC2_METADATA_DISABLED: 'true' },
});

/** The kubelet's settings, a file of its own kind. */
export function kubeletSettings(): unknown {
  return {
    apiVersion: 'kubelet.config.k8s.io/v1beta1',
    kind: 'KubeletConfiguration',
    cgroupDriver: 'cgroupfs',
    // A test host's control groups have no controllers to divide among pods.
    cgroupsPerQOS: false,
    enforceNodeAllocatable: [],
    failSwapOn: false,
    authentication: {
      anonymous: { enabled: false },
      webhook: { enabled: true },
      x509: { clientCAFile: `${PKI}/ca.crt` },
    },
    authorization: { mode: 'Webhook' },
    tlsCertFile: `${PKI}/kubelet.crt`,
    tlsPrivateKeyFile: `${PKI}/kubelet.key`,
    // All hosts share the machine's disk and memory, which may be fuller than a node's.
    evictionHard: { 'memory.available': '50Mi', 'nodefs.available': '1%', 'imagefs.available': '1%' },
    // No registry could bring an image back.
    imageGCHighThresholdPercent: 100,
    // Lowering it needs a capability that not every root has.
    oomScoreAdj: 0,
  };
}

export const PROXY = (host: Host): Daemon =>
  daemon('kube-proxy', healthAt('http://127.0.0.1:10256/healthz'), [
    `--kubeconfig=${CONFIG}/proxy.conf`,
    '--proxy-mode=iptables',
    `--cluster-cidr=${podRange(host)}`,
    `--hostname-override=${host.name}`,
    '--oom-score-adj=0',
    // The size of the connection table is one for the whole machine.
    '--conntrack-max-per-core=0',
    '--conntrack-min=0',
  ]);

export function networkSettings(host: Host): unknown {
  return {
    cniVersion: '0.4.0',
    name: 'pods',
    plugins: [
      {
        type: 'bridge',
        bridge: 'cni0',
        isGateway: true,
        ipMasq: true,
        hairpinMode: true,
        ipam: { type: 'host-local', ranges: [[{ subnet: podRange(host) }]], routes: [{ dst: '0.0.0.0/0' }] },
      },
      { type: 'portmap', capabilities: { portMappings: true } },
    ],
  };
}
