import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { pipeline } from 'node:stream/promises';
import type { Daemon } from './daemon.ts';
import type { Host } from './host.ts';

/** Where Kubernetes keeps what is its own in containerd. */
export const KUBERNETES_NAMESPACE = 'k8s.io';
export const PAUSE_IMAGE = 'localhost/pause:1';

/**
 * What Kubernetes needs of containerd, should there be one. It does not disturb other users, so it is always there, and
 * containerd need not start again.
 */
const SETTINGS = `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "${PAUSE_IMAGE}"
  # Lower scores need a capability that not every root has.
  restrict_oom_score_adj = true
  # A test host's control groups have no controllers, so limits would be refused.
  disable_cgroup = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
  # Where one runtime is named, the usual one must be, too.
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.ums]
    runtime_type = "io.containerd.runc.v2"
    pod_annotations = ["ums.*"]
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.ums.options]
      BinaryName = "/opt/ums/app/src/drivers/kubernetes/pod-runtime.sh"
`;

/** containerd on a test host: Debian's own, as Debian configures it. */
export const CONTAINERD: Daemon = {
  title: 'containerd',
  log: 'containerd.log',
  program: 'containerd',
  settle: async (host) => {
    await host.exec('mkdir', ['-p', '/etc/containerd']);
    host.writeFile('/etc/containerd/config.toml', SETTINGS);
  },
  question: ['ctr', 'version'],
};

const IMPORT_LIMIT_MS = 120_000;

/**
 * Imports a tree (an archive on the host) as an image of one layer. containerd takes no bare trees, so the archive gets
 * what makes an image of it, in the form of `docker save`; on every host the same bytes, and so the same digests.
 */
export async function importIntoContainerd(
  host: Host,
  source: { tree: string; image: string; path: string; namespace: string; command?: readonly string[] },
): Promise<void> {
  const { tree, image, path, namespace, command = ['sh'] } = source;
  const sum = createHash('sha256');
  await pipeline(createReadStream(host.path(tree)), sum);
  const config = JSON.stringify({
    architecture: process.arch === 'x64' ? 'amd64' : process.arch,
    os: 'linux',
    created: '1970-01-01T00:00:00Z',
    config: { Env: [`PATH=${path}`], Cmd: command },
    rootfs: { type: 'layers', diff_ids: [`sha256:${sum.digest('hex')}`] },
  });
  const manifest = JSON.stringify([{ Config: 'config.json', RepoTags: [image], Layers: ['layer.tar'] }]);
  const { stdout } = await host.exec('mktemp', ['-d', '/tmp/image-XXXXXX']);
  const directory = stdout.trim();
  try {
    host.writeFile(`${directory}/config.json`, config);
    host.writeFile(`${directory}/manifest.json`, manifest);
    await host.exec('ln', ['-s', tree, `${directory}/layer.tar`]);
    await host.exec('tar', [
      '-chf',
      `${directory}/image.tar`,
      '-C',
      directory,
      'manifest.json',
      'config.json',
      'layer.tar',
    ]);
    await host.exec('ctr', ['-n', namespace, 'images', 'import', '--local', `${directory}/image.tar`], {
      timeout_ms: IMPORT_LIMIT_MS,
    });
  } finally {
    await host.exec('rm', ['-rf', directory]);
  }
}
