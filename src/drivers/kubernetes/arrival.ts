import { readdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { UmsError } from '#src/telemetry/errors.ts';
import type { RestoreRequest } from '../contract.ts';
import { isMissing, poll } from '../oci/cgroup.ts';
import type { EngineRestore, EngineStart } from '../oci/engine-restore.ts';
import { exists } from '../oci/files.ts';
import { type LogFile, LINES_IMAGE } from '../oci/log-file.ts';
import type { CreateRecords } from '../oci/records.ts';
import type { RestoreArea } from '../oci/restore-area.ts';
import { linkRuntime, RUNTIME_LINKS } from '../oci/runtime-links.ts';
import type { Cluster, KubernetesApi } from './api.ts';
import { claimsFor, containersOf, type CreateRecord, moveIn, wantedOf } from './create.ts';
import { ended, say, type Waiting, waitingAt } from './gate.ts';
import { partOf } from './group.ts';
import { MIGRATION_ANNOTATION, manifestHere } from './manifest.ts';
import { muteLoopback } from './loopback.ts';
import { type Bundle, bundleOf, logPath, type PodName, runtimeContainer } from './node.ts';
import { type Pod, podSchema } from './schema.ts';

/** Milliseconds for the kubelet to bring a new pod to its gate: volumes, network, sandbox. */
const GATE_LIMIT_MS = 90_000;
const START_LIMIT_MS = 30_000;
const LOG_LIMIT_BYTES = 2 ** 20;

export interface Arrival {
  pod: Pod;
  waiting: Waiting;
  /** What containerd made for the container that waits. */
  bundle: Bundle;
  /** What it is called in its pod. */
  name: string;
}

/** What a restore is made with. */
export interface Means {
  cluster: Cluster;
  area: RestoreArea;
  restores: EngineRestore;
  records: CreateRecords<CreateRecord>;
}

/** The kubelet starts one container when it has started the one before, so each is restored when it is its turn. */
export async function restoreAll(
  means: Means,
  record: CreateRecord,
  key: string,
  request: RestoreRequest,
): Promise<void> {
  const names = wantedOf(record);
  let known = record;
  // What has come before, an earlier call has restored.
  for (let at = containersOf(record).length; at < names.length; at += 1) {
    known = await restoreOne(means, known, key, at, await partOf(request, at, names.length));
  }
}

async function restoreOne(
  { cluster, area, restores, records }: Means,
  before: CreateRecord,
  key: string,
  at: number,
  request: RestoreRequest,
): Promise<CreateRecord> {
  const arrival = await bringToGate(cluster, before, key, at);
  const { container } = arrival.waiting;
  const { uid } = arrival.pod.metadata;
  const come =
    at === 0 ? { container, claims: await claimsFor(before, arrival.bundle) } : { more: [...before.more, container] };
  const record = { ...before, uid, ...come };
  await records.write(key, record);
  await moveIn(record, key, uid, arrival.bundle, at);
  const localConnections = wantedOf(record).length > 1;
  if (localConnections && at === 0) await muteLoopback(arrival.bundle.network ?? '');
  await restores.run(await startOf(area, arrival, key, localConnections), request);
  return record;
}

/** The pod of this migration that is here: by its annotation, so that one which somebody else made is not taken for it. */
export async function podOfMigration(api: KubernetesApi, record: CreateRecord, key: string): Promise<Pod | undefined> {
  const pod = await api.pod(record.namespace, record.name);
  return pod?.metadata.annotations[MIGRATION_ANNOTATION] === key ? pod : undefined;
}

/** Makes the pod, if it is not there yet, and waits until this one of its containers, by its place, waits at the gate. */
export async function bringToGate(cluster: Cluster, record: CreateRecord, key: string, at: number): Promise<Arrival> {
  const wanted = wantedOf(record)[at] ?? '';
  const api = await cluster.api();
  const pod = (await usablePod(api, record, key)) ?? (await makePod(cluster, api, record, key));
  let found: Pick<Arrival, 'waiting' | 'bundle'> | undefined;
  let refused: string | undefined;
  let asked_ms = 0;
  await poll(
    async () => {
      found = await atGate(key, wanted);
      if (found !== undefined) return true;
      // The kubelet may have refused it, which only Kubernetes tells; that need not be asked as often.
      if (performance.now() - asked_ms < 1000) return false;
      asked_ms = performance.now();
      refused = problemOf(await podOfMigration(api, record, key));
      return refused !== undefined;
    },
    GATE_LIMIT_MS,
    5,
  );
  if (found !== undefined) return { pod, ...found, name: wanted };
  const last = await podOfMigration(api, record, key);
  throw new UmsError('UMS_E_RESTORE', {
    message: `The kubelet does not start pod ${record.name}: ${refused ?? reasonOf(last) ?? 'it gives no reason'}`,
    fault: 'destination',
    mend: `kubectl --namespace ${record.namespace} describe pod ${record.name}, and the log of containerd`,
  });
}

/** The kubelet goes on to the next when one has waited too long: that one is sent away, and both come again in their order. */
async function atGate(key: string, wanted: string): Promise<Pick<Arrival, 'waiting' | 'bundle'> | undefined> {
  const waiting = await waitingAt(key);
  const bundle = waiting === undefined ? undefined : await bundleOf(waiting.container);
  if (waiting === undefined || bundle === undefined) return undefined;
  if (bundle.name === '' || bundle.name === wanted) return { waiting, bundle };
  await say(key, 'no');
  return undefined;
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
  const statuses = pod?.status?.containerStatuses ?? [];
  const waiting = statuses.find(({ state }) => state.waiting !== undefined)?.state.waiting;
  return waiting === undefined ? undefined : `${waiting.reason} ${waiting.message}`.trim();
}

/** How the container at the gate is brought to life: it is let go, and the kubelet goes on as with any other. */
async function startOf(
  area: RestoreArea,
  arrival: Arrival,
  key: string,
  localConnections: boolean,
): Promise<EngineStart> {
  const { pod, waiting, name } = arrival;
  const id = waiting.container;
  return {
    container: runtimeContainer(id),
    settings: { ownNetwork: false, staysFrozen: true, localConnections },
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
    log: await logHere(podName(pod), name),
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
