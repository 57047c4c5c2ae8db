import { describe, expect, it } from 'vitest';
import { createArguments } from '../podman/create-args.ts';
import { type Specification, specificationSchema } from '../specification.ts';
import { translate } from '../translation.ts';
import { specificationOf } from './describe.ts';
import { podSchema } from './schema.ts';
import { POD_ANNOTATION } from './translation.ts';

const digest = (letter: string) => `sha256:${letter.repeat(64)}`;
const INDEX: Specification['image'] = {
  kind: 'image',
  id: digest('a'),
  names: ['docker.io/library/redis:7'],
  size_bytes: 7,
};
const IMAGE = { ...INDEX, configuration: digest('b') };

function specification(
  spec: object = {},
  container: object = {},
  image: Specification['image'] = IMAGE,
): Specification {
  const pod = podSchema.parse({
    metadata: { name: 'cache-x', namespace: 'default', labels: { app: 'cache' } },
    spec: {
      automountServiceAccountToken: false,
      containers: [
        {
          name: 'main',
          image: 'redis:7',
          command: ['redis-server'],
          args: ['--save', ''],
          env: [{ name: 'A', value: 'b' }],
          ports: [{ containerPort: 6379 }],
          ...container,
        },
      ],
      ...spec,
    },
  });
  return specificationOf(pod, [image]);
}

describe('a pod in Podman', () => {
  it('is a container that the processes fit into, and comes back as the pod that it was', () => {
    const before = specification({}, { resources: { limits: { memory: '1Gi' } } });
    const { specification: there, losses } = translate(before, 'podman');
    expect(specificationSchema.parse(there)).toEqual(there);
    expect(there).toMatchObject({
      engine: 'podman',
      name: 'cache-x',
      image: { id: digest('b') },
      entrypoint: ['redis-server'],
      command: ['--save', ''],
      env: ['A=b'],
      exposedPorts: ['6379/tcp'],
      labels: { app: 'cache' },
      restartPolicy: { name: 'always' },
      mounts: [{ kind: 'bind', source: '/dev/null', destination: '/dev/termination-log', transfer: 'expect' }],
    });
    expect(there.pod).toBeUndefined();
    expect(losses.join()).toMatch(/requests and limits/);
    const flags = createArguments(there, { image: 'redis' }).join(' ');
    expect(flags).toContain('--image-volume ignore');
    expect(flags).toContain('seccomp=unconfined');

    // As Podman describes it there: with what it adds by itself.
    const seen = { ...there, env: [...there.env, 'container=podman'], annotations: { ...there.annotations, x: 'y' } };
    const { specification: back } = translate(seen, 'kubernetes');
    expect(specificationSchema.parse(back)).toEqual(back);
    expect(back).toMatchObject({ engine: 'kubernetes', name: 'cache-x', pod: before.pod, mounts: [] });
    expect(back.image).toEqual({ ...IMAGE, fixed: true });
  });

  it('is itself where no other engine is asked for', () => {
    const same = specification();
    expect(translate(same, undefined).specification).toBe(same);
    expect(translate(same, 'kubernetes').specification).toBe(same);
  });

  const refused: [string, RegExp, () => Specification][] = [
    ['a token', /token of a service account/, () => specification({ automountServiceAccountToken: undefined })],
    ['volumes', /volumes/, () => specification({ volumes: [{ name: 'data', emptyDir: {} }] })],
    ['references', /environment/, () => specification({}, { env: [{ name: 'A', valueFrom: {} }] })],
    ['more references', /environment/, () => specification({}, { envFrom: [{ secretRef: { name: 's' } }] })],
    ['a user', /security context/, () => specification({}, { securityContext: { runAsUser: 7 } })],
    ['a group', /security context/, () => specification({ securityContext: { fsGroup: 7 } })],
    ['a terminal', /terminal/, () => specification({}, { tty: true })],
    ['an index of images', /configuration/, () => specification({}, {}, INDEX)],
  ];

  it('is refused with the reason where Podman could not have it', () => {
    for (const [, reason, make] of refused) expect(() => translate(make(), 'podman')).toThrow(reason);
  });

  it('never was one, if nothing says so', () => {
    const { specification: there } = translate(specification(), 'podman');
    const wrong = JSON.stringify({ pod: 1, image: IMAGE });
    for (const text of [undefined, '{', 'e30', Buffer.from(wrong).toString('base64url')]) {
      const annotations: Record<string, string> = text === undefined ? {} : { [POD_ANNOTATION]: text };
      expect(() => translate({ ...there, annotations }, 'kubernetes')).toThrow(/did not come from Kubernetes/);
    }
    expect(() => translate(specification(), 'docker')).toThrow(/cannot make one of docker of it/);
  });
});
