import type { Host } from '#lab/host.ts';
import { until } from './moves.ts';
import { lines, WORKLOAD } from './workload.ts';

const END_LIMIT_MS = 60_000;

/** What the cluster, its runtime, the kernel and ums still know of a pod on a host that has no other. */
async function remains(host: Host): Promise<string[]> {
  const found = await Promise.all([
    lines(host, 'kubectl', ['get', 'pods', '-o', 'name']),
    lines(host, 'sh', ['-c', 'ls -d /run/containerd/runc/k8s.io/* /var/lib/kubelet/pods/* 2>/dev/null || true']),
    lines(host, 'sh', [
      '-c',
      'ls -d /run/ums-runtime/* /var/lib/ums-runtime/* /var/lib/*/ums-arriving/* /run/ums-arriving/* 2>/dev/null || true',
    ]),
    lines(host, 'sh', [
      '-c',
      'ls -d /run/ums/staging/* /run/ums/restore/* /var/lib/ums/created/*/* 2>/dev/null || true',
    ]),
    lines(host, 'sh', ['-c', `ps -eo args | grep -E '^(${WORKLOAD}|/bin/${WORKLOAD}|criu|containerd-shim) ' || true`]),
  ]);
  const kinds = ['pod', 'kubelet', 'runtime', 'ums', 'process'];
  return found.flatMap((those, at) => those.map((one) => `${kinds[at]}: ${one}`));
}

export async function nothingRemains(host: Host): Promise<void> {
  await until(`nothing is left on ${host.name}`, END_LIMIT_MS, async () => {
    const found = await remains(host);
    if (found.length > 0) throw new Error(found.join('\n'));
    return true;
  });
}
