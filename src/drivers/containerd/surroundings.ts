import { join } from 'node:path';

/** Where containerd's shim for runc keeps the runtime's state, unless a container's options say otherwise. */
const RUNTIME_ROOT = '/run/containerd/runc';
/** Where containerd makes the bundles of tasks, unless it was configured otherwise. */
const TASKS = '/run/containerd/io.containerd.runtime.v2.task';

export function runtimeRoot(told: string, namespace: string): string {
  return join(told === '' ? RUNTIME_ROOT : told, namespace);
}

export function rootfsPath(namespace: string, id: string): string {
  return join(TASKS, namespace, id, 'rootfs');
}

/** Namespaces whose containers another program looks after: what it does not see done, it undoes. */
const FOREIGN: Record<string, string> = { 'k8s.io': 'Kubernetes', moby: 'Docker' };

export function ownerOf(namespace: string): string | undefined {
  return FOREIGN[namespace];
}
