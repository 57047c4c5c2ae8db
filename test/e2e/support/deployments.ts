import assert from 'node:assert/strict';
import type { Host } from '#lab/host.ts';
import { z } from 'zod';
import { until } from './moves.ts';

/** Deployments of one replica in the lab, and what kubectl shows of them. */
const SEEN_LIMIT_MS = 60_000;
const EXEC_LIMIT_MS = 30_000;

export async function kubectl(host: Host, ...words: string[]): Promise<string> {
  return (await host.exec('kubectl', words, { timeout_ms: EXEC_LIMIT_MS })).stdout.trim();
}

/** A program may answer before its cluster knows that it runs. */
export async function untilReady(host: Host, pod: string, limit_ms: number): Promise<void> {
  const wait = ['wait', '--for=condition=Ready', `pod/${pod}`, `--timeout=${limit_ms / 1000}s`];
  await host.exec('kubectl', wait, { timeout_ms: limit_ms + EXEC_LIMIT_MS });
}

export function deploymentOf(name: string, command: string[], image = command[0] ?? '', more: object = {}) {
  const container = { name: 'main', image: `localhost/${image}:latest`, imagePullPolicy: 'IfNotPresent', command };
  return {
    apiVersion: 'apps/v1',
    kind: 'Deployment',
    metadata: { name },
    spec: {
      replicas: 1,
      selector: { matchLabels: { app: name } },
      template: {
        metadata: { labels: { app: name } },
        spec: { terminationGracePeriodSeconds: 2, ...more, containers: [container] },
      },
    },
  };
}

export async function apply(host: Host, manifest: object): Promise<void> {
  await host.exec('kubectl', ['apply', '-f', '-'], { input: JSON.stringify(manifest) });
}

/** A second revision, because what a Deployment does without a ReplicaSet depends on whether there was one before. */
export async function makeDeployment(host: Host, name: string, command: string[], image?: string): Promise<string> {
  await apply(host, deploymentOf(name, ['busybox', 'sleep', '1000']));
  await kubectl(host, 'rollout', 'status', 'deployment', name, '--timeout=60s');
  await apply(host, deploymentOf(name, command, image));
  return await onePodOf(host, name);
}

export async function onePodOf(host: Host, name: string): Promise<string> {
  await kubectl(host, 'rollout', 'status', 'deployment', name, '--timeout=60s');
  return await until(`${name} has one pod`, SEEN_LIMIT_MS, async () => {
    const pods = await podsOf(host, name);
    return pods.length === 1 ? pods[0]?.metadata.name : undefined;
  });
}

const listSchema = z.object({
  items: z.array(
    z.object({
      metadata: z.object({
        name: z.string(),
        uid: z.string(),
        annotations: z.record(z.string(), z.string()).default({}),
        finalizers: z.array(z.string()).default([]),
        ownerReferences: z.array(z.object({ name: z.string(), uid: z.string() })).default([]),
      }),
      spec: z.looseObject({ replicas: z.int().optional(), paused: z.boolean().default(false) }),
    }),
  ),
});

async function listed(host: Host, kind: string, ...words: string[]) {
  return listSchema.parse(JSON.parse(await kubectl(host, 'get', kind, ...words, '-o', 'json'))).items;
}

export const podsOf = (host: Host, name: string) => listed(host, 'pods', '-l', `app=${name}`);

export async function theDeployment(host: Host, name: string) {
  const found = (await listed(host, 'deployments')).find(({ metadata }) => metadata.name === name);
  assert.ok(found !== undefined, `no deployment ${name} on ${host.name}`);
  return found;
}

/** The line that a person sees. */
export const shown = (host: Host, name: string) => kubectl(host, 'get', 'deployment', name, '--no-headers');

/** Its Deployment has it, counts it, and keeps nothing of its having been away. */
export async function isOwnersAgain(host: Host, name: string, pod: string): Promise<void> {
  await until(`${name} is whole again`, SEEN_LIMIT_MS, async () =>
    /^\S+\s+1\/1\s+1\s+1\s/.test(await shown(host, name)) ? true : undefined,
  );
  const { metadata, spec } = await theDeployment(host, name);
  assert.equal(spec.paused, false);
  assert.deepEqual(
    Object.keys(metadata.annotations).filter((each) => each.startsWith('ums.')),
    [],
  );
  const [only, ...more] = await podsOf(host, name);
  assert.deepEqual(more, [], 'one pod');
  assert.equal(only?.metadata.name, pod);
  assert.equal('ums.owner' in (only?.metadata.annotations ?? {}), false);
  const sets = await listed(host, 'replicasets', '-l', `app=${name}`);
  const own = sets.find((each) => each.metadata.uid === only?.metadata.ownerReferences[0]?.uid);
  assert.ok(own !== undefined, 'the pod belongs to a ReplicaSet that is there');
  assert.equal(own.spec.replicas, 1);
  assert.deepEqual(own.metadata.finalizers, []);
  assert.ok(
    own.metadata.ownerReferences.some(({ uid }) => uid === metadata.uid),
    'which is the Deployment’s',
  );
}
