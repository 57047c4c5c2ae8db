import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { UmsError } from '#src/telemetry/errors.ts';
import { z } from 'zod';
import { isMissing } from '../oci/cgroup.ts';
import type { RuntimeContainer } from '../oci/container.ts';
import type { Pod } from './schema.ts';

/**
 * Where a pod's containers are on the node: containerd's and the kubelet's directories, as both have them unless they were
 * told otherwise.
 */
const RUNTIME_ROOT = '/run/containerd/runc/k8s.io';
const TASKS = '/run/containerd/io.containerd.runtime.v2.task/k8s.io';
export const CONTAINERD_ROOT = '/var/lib/containerd';
export const KUBELET_ROOT = '/var/lib/kubelet';
const POD_LOGS = '/var/log/pods';
export const SHM = '/dev/shm';

const bundleSchema = z.object({
  annotations: z.record(z.string(), z.string()).default({}),
  linux: z
    .object({ namespaces: z.array(z.object({ type: z.string(), path: z.string().optional() })).default([]) })
    .default({ namespaces: [] }),
  mounts: z.array(z.object({ destination: z.string(), type: z.string().default(''), source: z.string().default('') })),
});

/** By which containerd tells the runtime what the container is called in its pod. */
const NAME_ANNOTATION = 'io.kubernetes.cri.container-name';

export interface Bundle {
  /** The container's name in its pod. */
  name: string;
  /** The directory that the container writes to. */
  upper: string;
  /** What is mounted in it, by its place in the container. */
  sources: Map<string, string>;
  /** Where its pod's network namespace is. */
  network: string | undefined;
}

export function runtimeContainer(id: string): RuntimeContainer {
  return { root: RUNTIME_ROOT, id };
}

/** In the order of the manifest, in which the kubelet starts them; its status has another. */
export function containerIds(pod: Pod): (string | undefined)[] {
  const statuses = pod.status?.containerStatuses ?? [];
  return pod.spec.containers.map(({ name }) =>
    containerId(statuses.find((status) => status.name === name)?.containerID ?? ''),
  );
}

/** `containerd://ID` of a pod's status; undefined for a container that was not created yet, or by another runtime. */
export function containerId(text: string): string | undefined {
  return /^containerd:\/\/([0-9a-f]{64})$/.exec(text)?.[1];
}

/** What containerd made for a container; undefined when it has none. */
export async function bundleOf(id: string): Promise<Bundle | undefined> {
  const directory = join(TASKS, id);
  let text: string;
  try {
    text = await readFile(join(directory, 'config.json'), 'utf8');
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
  const { annotations, mounts, linux } = bundleSchema.parse(JSON.parse(text));
  const upper = upperOf(await readFile('/proc/self/mountinfo', 'utf8'), join(directory, 'rootfs'));
  if (upper === undefined) {
    throw new UmsError('UMS_E_ENGINE', {
      message: `The root of container ${id.slice(0, 12)} is no overlay that can be seen from here`,
      fault: 'ums',
      mend: "Use containerd's overlayfs snapshotter, and run the agent in the mount namespace of containerd.",
    });
  }
  const sources = new Map(mounts.map(({ destination, source }) => [destination, source]));
  const network = linux.namespaces.find(({ type }) => type === 'network')?.path;
  return { name: annotations[NAME_ANNOTATION] ?? '', upper, sources, network };
}

/** The upper directory of the overlay at this mount point. */
export function upperOf(mountinfo: string, point: string): string | undefined {
  for (const line of mountinfo.split('\n')) {
    const [mount = '', origin = ''] = line.split(' - ');
    if (mount.split(' ')[4] !== point || !origin.startsWith('overlay ')) continue;
    return /(?:^|,)upperdir=([^,]+)/.exec(origin.split(' ')[2] ?? '')?.[1];
  }
  return undefined;
}

export function podDirectory(uid: string): string {
  return join(KUBELET_ROOT, 'pods', uid);
}

export function emptyDirPath(uid: string, volume: string): string {
  return join(podDirectory(uid), 'volumes', 'kubernetes.io~empty-dir', volume);
}

export interface PodName {
  namespace: string;
  name: string;
  uid: string;
}

/** The log of a container's first, second, … run in this pod. */
export function logPath({ namespace, name, uid }: PodName, container: string, restarts: number): string {
  return join(POD_LOGS, `${namespace}_${name}_${uid}`, container, `${restarts}.log`);
}
