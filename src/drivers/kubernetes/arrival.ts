import { readdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { UmsError } from '#src/telemetry/errors.ts';
import { isMissing, poll } from '../oci/cgroup.ts';
import type { EngineStart } from '../oci/engine-restore.ts';
import { exists } from '../oci/files.ts';
import { type LogFile, LINES_IMAGE } from '../oci/log-file.ts';
import type { RestoreArea } from '../oci/restore-area.ts';
import { linkRuntime, RUNTIME_LINKS } from '../oci/runtime-links.ts';
import type { Cluster, KubernetesApi } from './api.ts';
import type { CreateRecord } from './create.ts';
import { ended, say, type Waiting, waitingAt } from './gate.ts';
import { MIGRATION_ANNOTATION, manifestHere } from './manifest.ts';
import { logPath, type PodName, runtimeContainer } from './node.ts';
import { type Pod, podSchema } from './schema.ts';

/** Milliseconds for the kubelet to bring a new pod to its gate: volumes, network, sandbox. */
const GATE_LIMIT_MS = 90_000;
const START_LIMIT_MS = 30_000;
const LOG_LIMIT_BYTES = 2 ** 20;

export interface Arrival {
  pod: Pod;
  waiting: Waiting;
}

/** The pod of this migration that is here: by its annotation, so that one which somebody else made is not taken for it. */
export async function podOfMigration(api: KubernetesApi, record: CreateRecord, key: string): Promise<Pod | undefined> {
  const pod = await api.pod(record.namespace, record.name);
  return pod?.metadata.annotations[MIGRATION_ANNOTATION] === key ? pod : undefined;
}

/** Makes the pod, if it is not there yet, and waits until its container waits at the gate. */
export async function bringToGate(cluster: Cluster, record: CreateRecord, key: string): Promise<Arrival> {
  const api = await cluster.api();
  const pod = (await usablePod(api, record, key)) ?? (await makePod(cluster, api, record, key));
  let waiting: Waiting | undefined;
  let refused: string | undefined;
  let asked_ms = 0;
  await poll(
    async () => {
      waiting = await waitingAt(key);
      if (waiting !== undefined) return true;
      // The kubelet may have refused it, which only Kubernetes tells; that need not be asked as often.
      if (performance.now() - asked_ms < 1000) return false;
      asked_ms = performance.now();
      refused = problemOf(await podOfMigration(api, record, key));
      return refused !== undefined;
    },
    GATE_LIMIT_MS,
    5,
  );
  if (waiting !== undefined) return { pod, waiting };
  const last = await podOfMigration(api, record, key);
  throw new UmsError('UMS_E_RESTORE', {
    message: `The kubelet does not start pod ${record.name}: ${refused ?? reasonOf(last) ?? 'it gives no reason'}`,
    fault: 'destination',
    mend: `kubectl --namespace ${record.namespace} describe pod ${record.name}, and the log of containerd`,
  });
}

/** One that waited too long at its gate may have failed for good, by its restart policy: then another one is made. */
async function usablePod(api: KubernetesApi, record: CreateRecord, key: string): Promise<Pod | undefined> {
  const pod = await podOfMigration(api, record, key);
  if (pod?.status?.phase !== 'Failed') return pod;
  await api.deletePod(pod.metadata.namespace, pod.metadata.name, pod.metadata.uid);
  return undefined;
}

async function makePod(cluster: Cluster, api: KubernetesApi, record: CreateRecord, key: string): Promise<Pod> {
  const node = await cluster.node();
  const { namespace, manifest, owner, labels } = record;
  const pod = podSchema.parse(JSON.parse(manifest));
  const wanted = manifestHere(pod, { owner, labels }, node.metadata.name, key);
  return await api.createPod(namespace, wanted);
}

function problemOf(pod: Pod | undefined): string | undefined {
  if (pod === undefined) return 'somebody has deleted it';
  if (pod.status?.phase !== 'Failed') return undefined;
  return `${pod.status.reason} ${pod.status.message}`.trim();
}

function reasonOf(pod: Pod | undefined): string | undefined {
  const waiting = pod?.status?.containerStatuses[0]?.state.waiting;
  return waiting === undefined ? undefined : `${waiting.reason} ${waiting.message}`.trim();
}

/** How the container at the gate is brought to life: it is let go, and the kubelet goes on as with any other. */
export async function startOf(area: RestoreArea, arrival: Arrival, key: string): Promise<EngineStart> {
  const { pod, waiting } = arrival;
  const id = waiting.container;
  return {
    container: runtimeContainer(id),
    settings: { ownNetwork: false, staysFrozen: true },
    launch: async (limit_ms) => {
      await linkRuntime(area, id);
      if (!(await say(key, 'go'))) {
        throw new UmsError('UMS_E_TIMEOUT', {
          message: 'The kubelet has given up waiting for the service',
          fault: 'destination',
          mend: 'Try again.',
        });
      }
      await ended(key, waiting, limit_ms);
      await started(id);
    },
    merged: '',
    log: await logHere(podName(pod), containerName(pod)),
    kept: [],
  };
}

/** Until containerd has asked for its start, which changes nothing, the container must not be taken from ums' runtime. */
async function started(id: string): Promise<void> {
  if (await poll(() => exists(join(RUNTIME_LINKS, id, 'started')), START_LIMIT_MS, 2)) return;
  throw new UmsError('UMS_E_TIMEOUT', {
    message: `containerd did not start ${id.slice(0, 12)} within ${START_LIMIT_MS} ms of its restore`,
    fault: 'destination',
    mend: 'See the log of containerd.',
  });
}

export function podName({ metadata: { namespace, name, uid } }: Pod): PodName {
  return { namespace, name, uid };
}

export function containerName(pod: Pod): string {
  return pod.spec.containers[0]?.name ?? '';
}

/** The newest log of a container: one is begun each time that the kubelet starts it. */
export async function logHere(pod: PodName, container: string): Promise<LogFile | undefined> {
  const directory = dirname(logPath(pod, container, 0));
  const numbers = (await readdirIfThere(directory)).flatMap((name) => /^(\d+)\.log$/.exec(name)?.[1] ?? []).map(Number);
  if (numbers.length === 0) return undefined;
  return { path: logPath(pod, container, Math.max(...numbers)), image: LINES_IMAGE, limit_bytes: LOG_LIMIT_BYTES };
}

async function readdirIfThere(path: string): Promise<string[]> {
  try {
    return await readdir(path);
  } catch (error) {
    if (isMissing(error)) return [];
    throw error;
  }
}
