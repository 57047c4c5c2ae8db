import assert from 'node:assert/strict';
import type { Host } from '#lab/host.ts';
import { z } from 'zod';
import { until } from './moves.ts';

/** Deployments and StatefulSets of one replica in the lab, and what kubectl shows of them. */
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

export function statefulSetOf(name: string, command: string[], image?: string) {
  const { spec, ...rest } = deploymentOf(name, command, image);
  return { ...rest, kind: 'StatefulSet', spec: { ...spec, serviceName: name } };
}

const CLAIM = { storageClassName: '', accessModes: ['ReadWriteOnce'], resources: { requests: { storage: '64Mi' } } };

/** The same with a volume of its own, claimed for its pod, at /data. */
export function storingSetOf(name: string, command: string[], image?: string) {
  const { spec, ...rest } = statefulSetOf(name, command, image);
  const containers = spec.template.spec.containers.map((container) => ({
    ...container,
    volumeMounts: [{ name: 'data', mountPath: '/data' }],
  }));
  const template = { ...spec.template, spec: { ...spec.template.spec, containers } };
  return { ...rest, spec: { ...spec, template, volumeClaimTemplates: [{ metadata: { name: 'data' }, spec: CLAIM }] } };
}

/** What an administrator has ready for it: a directory of the node, and the claim. */
export async function makeClaim(host: Host, name: string): Promise<string> {
  const path = `/srv/${name}`;
  const claim = `data-${name}-0`;
  const { resources, ...rest } = CLAIM;
  await apply(host, {
    apiVersion: 'v1',
    kind: 'PersistentVolume',
    metadata: { name },
    spec: {
      ...rest,
      capacity: resources.requests,
      hostPath: { path, type: 'DirectoryOrCreate' },
      claimRef: { namespace: 'default', name: claim },
    },
  });
  const spec = { ...CLAIM, volumeName: name };
  await apply(host, { apiVersion: 'v1', kind: 'PersistentVolumeClaim', metadata: { name: claim }, spec });
  const phase = ['get', 'persistentvolumeclaim', claim, '-o', 'jsonpath={.status.phase}'];
  await until(`${claim} is bound`, SEEN_LIMIT_MS, async () =>
    (await kubectl(host, ...phase)) === 'Bound' ? true : undefined,
  );
  return path;
}

export async function removeClaim(host: Host, name: string): Promise<void> {
  // They go when the last pod that used them has gone.
  await kubectl(host, 'delete', 'persistentvolumeclaim', `data-${name}-0`, '--wait=false');
  await kubectl(host, 'delete', 'persistentvolume', name, '--wait=false');
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
        labels: z.record(z.string(), z.string()).default({}),
        deletionTimestamp: z.string().optional(),
        finalizers: z.array(z.string()).default([]),
        ownerReferences: z.array(z.object({ name: z.string(), uid: z.string() })).default([]),
      }),
      spec: z.looseObject({
        replicas: z.int().optional(),
        paused: z.boolean().default(false),
        updateStrategy: z.looseObject({ type: z.string().optional() }).optional(),
      }),
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

export async function theStatefulSet(host: Host, name: string) {
  const found = (await listed(host, 'statefulsets')).find(({ metadata }) => metadata.name === name);
  assert.ok(found !== undefined, `no StatefulSet ${name} on ${host.name}`);
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

/** The same of a StatefulSet, which has been made again since; the uid of its pod. */
export async function isSetsAgain(host: Host, name: string): Promise<string> {
  await until(`${name} is whole again`, SEEN_LIMIT_MS, async () =>
    /^\S+\s+1\/1\s/.test(await kubectl(host, 'get', 'statefulset', name, '--no-headers')) ? true : undefined,
  );
  const { metadata, spec } = await theStatefulSet(host, name);
  assert.equal(metadata.deletionTimestamp, undefined);
  assert.deepEqual(metadata.finalizers, []);
  assert.equal(spec.updateStrategy?.type, 'RollingUpdate', 'as it was');
  assert.deepEqual(
    Object.keys(metadata.annotations).filter((each) => each.startsWith('ums.')),
    [],
  );
  const [only, ...more] = await podsOf(host, name);
  assert.deepEqual(more, [], 'one pod');
  assert.equal(only?.metadata.name, `${name}-0`);
  assert.equal('ums.owner' in only.metadata.annotations, false);
  assert.deepEqual(
    only.metadata.ownerReferences.map(({ uid }) => uid),
    [metadata.uid],
    'the pod is the StatefulSet’s',
  );
  return only.metadata.uid;
}
