import { describe, expect, it } from 'vitest';
import { labelsOf, manifestHere, manifestOf, OWNER_ANNOTATION } from './manifest.ts';
import {
  type DeploymentOwner,
  FINALIZER,
  HELD_ANNOTATION,
  isHeld,
  isKept,
  ownerTold,
  possibleSet,
  sameTemplate,
  type StatefulSetOwner,
  waitsFor,
} from './owner-told.ts';
import {
  type Deployment,
  deploymentSchema,
  type Pod,
  podSchema,
  type ReplicaSet,
  replicaSetSchema,
  statefulSetSchema,
} from './schema.ts';

const OWNER: DeploymentOwner = {
  kind: 'Deployment',
  name: 'cache',
  uid: 'd-1',
  replicaSet: { name: 'cache-5d59', uid: 'r-1' },
  pod: 'p-1',
};

function pod(annotations: Record<string, string> = {}): Pod {
  return podSchema.parse({
    metadata: { name: 'cache-5d59-x', labels: { app: 'cache', 'pod-template-hash': '5d59' }, annotations },
    spec: { containers: [{ name: 'c', image: 'redis' }] },
  });
}

/** As API servers answer: the order of fields is nobody's promise. */
function deployment(metadata: object = {}, container: object = { name: 'c', image: 'redis' }): Deployment {
  return deploymentSchema.parse({
    metadata: { name: 'cache', uid: 'd-1', resourceVersion: '1', ...metadata },
    spec: { template: { spec: { containers: [container] }, metadata: { labels: { app: 'cache' } } } },
  });
}

function replicaSet(metadata: object = {}): ReplicaSet {
  return replicaSetSchema.parse({
    metadata: { name: 'cache-5d59', uid: 'r-1', resourceVersion: '2', ...metadata },
    spec: {
      selector: { matchLabels: { app: 'cache', 'pod-template-hash': '5d59' } },
      template: {
        metadata: { labels: { 'pod-template-hash': '5d59', app: 'cache' } },
        spec: { containers: [{ image: 'redis', name: 'c' }] },
      },
    },
  });
}

describe('a pod that leaves its Deployment', () => {
  it('takes along which one it was, and not the label by which that one’s ReplicaSet would know it', () => {
    const away = podSchema.parse(manifestOf(pod(), OWNER));
    expect(labelsOf(pod())).toEqual({ app: 'cache' });
    expect(away.metadata.labels).toEqual({ app: 'cache' });
    expect(ownerTold(away)).toEqual(OWNER);
    expect(away.metadata.ownerReferences).toEqual([]);
    // And from there to a third cluster, too.
    expect(ownerTold(podSchema.parse(manifestOf(away)))).toEqual(OWNER);
  });

  it('comes back with what its ReplicaSet counts it by', () => {
    const labels = replicaSet().spec.selector.matchLabels;
    const back = podSchema.parse(
      manifestHere(podSchema.parse(manifestOf(pod())), { owner: OWNER, labels }, 'a', 'm-1'),
    );
    expect(back.metadata.labels).toEqual({ app: 'cache', 'pod-template-hash': '5d59' });
    expect(back.metadata.ownerReferences).toMatchObject([{ kind: 'ReplicaSet', uid: 'r-1', controller: true }]);
  });

  it('tells nothing when its annotation is not what ums wrote', () => {
    for (const text of [
      '',
      '{',
      '[]',
      '{"kind":"Job"}',
      JSON.stringify({ ...OWNER, uid: 'x'.repeat(65) }),
      'x'.repeat(5000),
    ]) {
      expect(ownerTold(pod({ [OWNER_ANNOTATION]: text }))).toBeUndefined();
    }
  });
});

describe('a Deployment whose pod is away', () => {
  it('waits for that pod alone, and only as long as it is the same Deployment', () => {
    const noted = { annotations: { [HELD_ANNOTATION]: 'p-1' } };
    expect(waitsFor(deployment(noted), OWNER)).toBe(true);
    expect(waitsFor(undefined, OWNER)).toBe(false);
    expect(waitsFor(deployment(), OWNER)).toBe(false);
    expect(waitsFor(deployment({ annotations: { [HELD_ANNOTATION]: 'p-2' } }), OWNER)).toBe(false);
    expect(waitsFor(deployment({ ...noted, uid: 'd-2' }), OWNER)).toBe(false);
    expect(waitsFor(deployment({ ...noted, deletionTimestamp: '2026-01-01T00:00:00Z' }), OWNER)).toBe(false);
  });

  it('keeps its place by a finalizer of the very ReplicaSet', () => {
    expect(isHeld(replicaSet({ finalizers: ['orphan', FINALIZER] }), OWNER)).toBe(true);
    expect(isHeld(replicaSet({ finalizers: ['orphan'] }), OWNER)).toBe(false);
    expect(isHeld(replicaSet({ finalizers: [FINALIZER], uid: 'r-2' }), OWNER)).toBe(false);
    expect(isHeld(undefined, OWNER)).toBe(false);
  });

  it('is seen to have been given another template', () => {
    expect(sameTemplate(deployment(), replicaSet())).toBe(true);
    expect(sameTemplate(deployment({}, { name: 'c', image: 'redis:8' }), replicaSet())).toBe(false);
  });
});

function set(metadata: object) {
  return statefulSetSchema.parse({
    metadata: { name: 'db', uid: 's-1', resourceVersion: '3', ...metadata },
    spec: { selector: { matchLabels: { app: 'db' } }, template: { metadata: {}, spec: {} }, serviceName: 'db' },
  });
}

describe('a StatefulSet whose pod is away', () => {
  const owner: StatefulSetOwner = { kind: 'StatefulSet', name: 'db', uid: 's-1', pod: 'p-1', revision: 'db-7c9' };
  const noted = { annotations: { [HELD_ANNOTATION]: 'p-1' }, finalizers: [FINALIZER] };

  it('keeps its place for that pod alone, and only as long as it is the same one', () => {
    expect(isKept(set(noted), owner)).toBe(true);
    expect(isKept(set({ ...noted, uid: 's-2' }), owner)).toBe(false);
    expect(isKept(set({ ...noted, finalizers: ['other'] }), owner)).toBe(false);
    expect(isKept(set({ ...noted, annotations: { [HELD_ANNOTATION]: 'p-2' } }), owner)).toBe(false);
    expect(isKept(undefined, owner)).toBe(false);
  });

  it('has its pod back under the name of its template, without being its owner before it is made again', () => {
    const sent = podSchema.parse({
      metadata: { name: 'db-0', labels: { app: 'db', 'controller-revision-hash': 'db-7c9' } },
      spec: { containers: [{ name: 'c', image: 'redis' }] },
    });
    const away = podSchema.parse(manifestOf(sent, owner));
    expect(away.metadata.labels).toEqual({ app: 'db' });
    expect(ownerTold(away)).toEqual(owner);
    const labels = { 'controller-revision-hash': owner.revision };
    const back = podSchema.parse(manifestHere(away, { owner, labels }, 'a', 'm-1'));
    expect(back.metadata.labels).toEqual({ app: 'db', 'controller-revision-hash': 'db-7c9' });
    expect(back.metadata.ownerReferences).toEqual([]);
  });

  it('is the only one that a pod of its name could belong to', () => {
    expect(possibleSet(pod())).toBeUndefined();
    expect(possibleSet({ ...pod(), metadata: { ...pod().metadata, name: 'my-db-12' } })).toBe('my-db');
  });
});
