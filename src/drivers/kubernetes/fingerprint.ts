import { UmsError } from '#src/telemetry/errors.ts';
import type { EngineFingerprint } from '../contract.ts';
import { runcVersion } from '../oci/runtime.ts';
import { Cluster } from './api.ts';

/** Whether this host is a node of a cluster whose pods can be moved, and if not, why. */
export async function fingerprintOf(cluster: Cluster): Promise<EngineFingerprint> {
  const runtime = await runcVersion();
  const base = { engine: 'kubernetes', version: '', runtime: runtime ?? '' } as const;
  if (!Cluster.isInstalled()) {
    const mend = 'Name a kubeconfig by UMS_KUBECONFIG in the environment of the agent.';
    return { ...base, available: false, problem: 'There is no kubeconfig here', mend };
  }
  if (runtime === undefined) {
    return { ...base, available: false, problem: 'runc is not installed', mend: 'apt install runc' };
  }
  try {
    const version = await (await cluster.api()).version();
    const { status } = await cluster.node();
    if (!status.nodeInfo.containerRuntimeVersion.startsWith('containerd://')) {
      const problem = `The kubelet here uses ${status.nodeInfo.containerRuntimeVersion}`;
      return { ...base, version, available: false, problem, mend: 'Use a node whose kubelet uses containerd.' };
    }
    return { ...base, version, available: true };
  } catch (error) {
    if (!(error instanceof UmsError)) throw error;
    return { ...base, available: false, problem: error.message, mend: error.mend || 'kubectl get nodes' };
  }
}
