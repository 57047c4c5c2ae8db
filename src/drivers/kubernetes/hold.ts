import { mkdir, rename, rmdir } from 'node:fs/promises';
import { join } from 'node:path';
import { isMissing } from '../oci/cgroup.ts';
import { exists } from '../oci/files.ts';
import { podDirectory } from './node.ts';

const HELD = '.held-by-ums';

/**
 * Keeps the kubelet from starting a container of this pod, whatever makes it want to: a restart policy, a failed probe, or
 * a boot. Kubernetes has no such lock, and a service that is away must not begin anew. Whenever the kubelet starts a container
 * it writes the file that becomes its /etc/hosts; a directory in that place makes the start fail. What runs has the file
 * mounted and does not notice. The directory goes with the pod.
 */
export async function hold(uid: string): Promise<void> {
  const hosts = hostsOf(uid);
  if (!(await exists(podDirectory(uid)))) return;
  if ((await exists(hosts)) && !(await exists(hosts + HELD))) await rename(hosts, hosts + HELD);
  if (!(await exists(hosts))) await mkdir(hosts);
}

export async function release(uid: string): Promise<void> {
  const hosts = hostsOf(uid);
  if (!(await exists(hosts + HELD))) return;
  try {
    if (await exists(hosts)) await rmdir(hosts);
    await rename(hosts + HELD, hosts);
  } catch (error) {
    // The kubelet has removed the pod meanwhile.
    if (!isMissing(error)) throw error;
  }
}

function hostsOf(uid: string): string {
  return join(podDirectory(uid), 'etc-hosts');
}
