import type { ContainerdClient } from './client.ts';
import { MARK } from './create.ts';
import { RESTART_STATUS } from './describe.ts';
import type { ContainerdHandle } from './handle.ts';
import type { Container } from './schema.ts';

/** containerd's restart monitor looks at the labels of containers every few seconds, and does what they say. */
export function restarts({ labels }: Container): boolean {
  return labels[RESTART_STATUS] === 'running';
}

async function changeLabels(
  client: ContainerdClient,
  id: string,
  change: (labels: Record<string, string>) => Record<string, string>,
): Promise<void> {
  const container = await client.container(id);
  if (container === undefined) return;
  const labels = change(container.labels);
  if (!sameLabels(labels, container.labels)) await client.updateContainer({ id, labels }, ['labels']);
}

function sameLabels(left: Record<string, string>, right: Record<string, string>): boolean {
  const names = new Set([...Object.keys(left), ...Object.keys(right)]);
  return [...names].every((name) => left[name] === right[name]);
}

/** Without this one the monitor has nothing to do with it; the others say how, and stay. */
export async function forbidRestart(client: ContainerdClient, id: string): Promise<void> {
  await changeLabels(client, id, ({ [RESTART_STATUS]: _status, ...labels }) => labels);
}

/** What a person says by stopping or starting one that containerd looks after. */
export async function wantRunning(client: ContainerdClient, id: string, running: boolean): Promise<void> {
  await changeLabels(client, id, (labels) =>
    labels[RESTART_STATUS] === undefined ? labels : { ...labels, [RESTART_STATUS]: running ? 'running' : 'stopped' },
  );
}

/** It is the one copy from now on, and containerd looks after it as it did at the source. */
export async function handOver(
  client: ContainerdClient,
  id: string,
  restartLabels: Record<string, string>,
): Promise<void> {
  await changeLabels(client, id, (labels) => ({ ...labels, ...restartLabels }));
}

/** Takes the migration's mark from what it made. */
export async function settleRecord(
  client: ContainerdClient,
  { id, snapshotter, snapshotKey }: ContainerdHandle,
): Promise<void> {
  await changeLabels(client, id, ({ [MARK]: _mark, ...labels }) => labels);
  const snapshot = await client.snapshot(snapshotter, snapshotKey);
  if (snapshot?.labels[MARK] === undefined) return;
  const { [MARK]: _mark, ...labels } = snapshot.labels;
  await client.labelSnapshot(snapshotter, snapshotKey, labels);
}
