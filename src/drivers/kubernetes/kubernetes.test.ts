import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import { imagesOf, type Specification, specificationSchema } from '../specification.ts';
import { accessOf } from './config.ts';
import { movingVolumes, sourceTrees, specificationOf } from './describe.ts';
import { stateOfAll } from './group.ts';
import { fullName, parseImages } from './images.ts';
import { lossesOf, refuseUnmovable } from './losses.ts';
import { manifestHere, podOf } from './manifest.ts';
import { type Bundle, containerId, containerIds, emptyDirPath, upperOf } from './node.ts';
import { type Pod, podSchema } from './schema.ts';

const IMAGE: Specification['image'] = { kind: 'image', id: `sha256:${'a'.repeat(64)}`, names: ['x'], size_bytes: 1 };

/** As an API server answers for a pod that a person made of a few lines. */
function podSeen(
  edit: (pod: Record<string, unknown> & { spec: Record<string, unknown> }) => void = () => undefined,
): Pod {
  const pod = {
    metadata: {
      name: 'cache',
      namespace: 'shop',
      uid: '11111111-2222-3333-4444-555555555555',
      resourceVersion: '7',
      creationTimestamp: '2026-01-01T00:00:00Z',
      labels: { app: 'cache' },
      managedFields: [{ manager: 'kubectl' }],
    },
    spec: {
      nodeName: 'alpha',
      priority: 0,
      preemptionPolicy: 'PreemptLowerPriority',
      serviceAccount: 'default',
      serviceAccountName: 'default',
      restartPolicy: 'Always',
      terminationGracePeriodSeconds: 30,
      volumes: [
        { name: 'data', emptyDir: {} },
        { name: 'default-token-abcde', secret: { secretName: 'default-token-abcde', defaultMode: 420 } },
      ],
      containers: [
        {
          name: 'main',
          image: 'redis',
          command: ['redis-server'],
          args: ['--save', ''],
          env: [
            { name: 'A', value: 'b' },
            { name: 'NODE', valueFrom: { fieldRef: { fieldPath: 'spec.nodeName' } } },
          ],
          imagePullPolicy: 'Always',
          resources: { limits: { memory: '1Gi' } },
          securityContext: { runAsUser: 100 },
          volumeMounts: [
            { name: 'data', mountPath: '/data' },
            { name: 'default-token-abcde', mountPath: '/var/run/secrets/kubernetes.io/serviceaccount', readOnly: true },
          ],
        },
      ],
    },
    status: { phase: 'Running', podIP: '10.244.1.2' },
  };
  edit(pod);
  return podSchema.parse(pod);
}

describe('a pod and its specification', () => {
  it('keeps all that a person wrote, and nothing that a cluster added', () => {
    const specification = specificationOf(podSeen(), [IMAGE]);
    expect(specificationSchema.parse(specification)).toEqual(specification);
    expect(specification).toMatchObject({ name: 'shop.cache', entrypoint: ['redis-server'], command: ['--save', ''] });
    expect(specification.mounts).toMatchObject([{ kind: 'volume', name: 'data', destination: '/data' }]);
    const { pod } = podOf(specification);
    const text = JSON.stringify(pod);
    for (const own of ['alpha', 'default-token', 'managedFields', '11111111', 'preemptionPolicy', '10.244']) {
      expect(text).not.toContain(own);
    }
    expect(pod.spec.containers[0]).toMatchObject({
      env: [{ name: 'A', value: 'b' }, { valueFrom: { fieldRef: { fieldPath: 'spec.nodeName' } } }],
      resources: { limits: { memory: '1Gi' } },
      securityContext: { runAsUser: 100 },
    });
  });

  it('is made on the node that receives it, by the runtime class that restores, from the image that came', () => {
    const made = podSchema.parse(
      manifestHere(podOf(specificationOf(podSeen(), [IMAGE])).pod, { labels: {} }, 'beta', 'm-1'),
    );
    expect(made.metadata.annotations).toEqual({ 'ums.migration': 'm-1' });
    expect(made.spec).toMatchObject({ nodeName: 'beta', runtimeClassName: 'ums' });
    expect(made.spec.containers[0]?.imagePullPolicy).toBe('IfNotPresent');
    const again = specificationOf({ ...made, status: podSeen().status }, [IMAGE]);
    expect(again.pod?.manifest).not.toContain('ums');
  });
});

function bundleOf(name: string): Bundle {
  const sources = new Map([['/dev/shm', '/run/shm']]);
  return { name, upper: `/upper/${name}`, sources, network: '/run/netns/x' };
}

function statusOf(name: string, digit: string) {
  return { name, containerID: `containerd://${digit.repeat(64)}` };
}

describe('a pod of several containers', () => {
  const two = podSeen(({ spec }) => {
    const volumeMounts = [
      { name: 'data', mountPath: '/shared' },
      { name: 'more', mountPath: '/more' },
    ];
    const [main] = z.array(z.unknown()).parse(spec['containers']);
    const ports = [{ containerPort: 80, hostPort: 8080 }];
    spec['containers'] = [main, { name: 'side', image: 'busybox', volumeMounts, ports }];
    spec['volumes'] = [
      { name: 'data', emptyDir: {} },
      { name: 'more', emptyDir: {} },
    ];
  });
  const OTHER: Specification['image'] = { ...IMAGE, id: `sha256:${'b'.repeat(64)}`, names: ['y'] };

  it('is one service, with the volumes, ports and images of all of them', () => {
    const specification = specificationOf(two, [IMAGE, OTHER]);
    expect(specificationSchema.parse(specification)).toEqual(specification);
    expect(specification).toMatchObject({ containers: 2, image: IMAGE, ports: [{ hostPort: 8080 }] });
    expect(specification.mounts).toMatchObject([
      { name: 'data', destination: '/data' },
      { name: 'more', destination: '/more' },
    ]);
    expect(imagesOf(specification)).toEqual([IMAGE, OTHER]);
    expect(podOf(specification).pod.spec.containers.map(({ name }) => name)).toEqual(['main', 'side']);
    expect(specificationOf(podSeen(), [IMAGE])).not.toHaveProperty('containers');
  });

  it('has a writable layer for each, and what it shares once', () => {
    expect(sourceTrees(two, [bundleOf('main'), bundleOf('side')]).map(({ id, path }) => [id, path])).toEqual([
      ['upper', '/upper/main'],
      ['upper:side', '/upper/side'],
      ['shm', '/run/shm'],
      ['volume:data', emptyDirPath(two.metadata.uid, 'data')],
      ['volume:more', emptyDirPath(two.metadata.uid, 'more')],
    ]);
  });

  it('knows its containers by their names, in the order of the manifest', () => {
    const seen = podSchema.parse({
      ...two,
      status: { containerStatuses: [statusOf('side', 'b'), statusOf('main', 'a')] },
    });
    expect(containerIds(seen)).toEqual(['a'.repeat(64), 'b'.repeat(64)]);
    expect(containerIds(two)).toEqual([undefined, undefined]);
  });

  it('is what all of its containers are', () => {
    expect(stateOfAll(['frozen', 'frozen'])).toBe('frozen');
    expect(stateOfAll(['frozen', 'running'])).toBe('running');
    expect(stateOfAll(['running', 'restored'])).toBe('restored');
    expect(stateOfAll(['restored', 'created'])).toBe('created');
    expect(stateOfAll(['running', 'stopped'])).toBe('stopped');
  });
});

const owner = (kind: string) => ({ kind, name: 'web', controller: true });

describe('what cannot be moved', () => {
  const refused: [string, RegExp, Parameters<typeof podSeen>[0]][] = [
    ['an owner', /DaemonSet web/, (pod) => (pod['metadata'] = { name: 'x', ownerReferences: [owner('DaemonSet')] })],
    ['a job', /counts only/, (pod) => (pod['metadata'] = { name: 'x', ownerReferences: [owner('Job')] })],
    ['a host path', /hostPath/, ({ spec }) => (spec['volumes'] = [{ name: 'v', hostPath: { path: '/' } }])],
    [
      'a claim that its first container does not have',
      /does not mount volume v/,
      ({ spec }) => (spec['volumes'] = [{ name: 'v', persistentVolumeClaim: { claimName: 'c' } }]),
    ],
    ['the host’s network', /hostNetwork/, ({ spec }) => (spec['hostNetwork'] = true)],
    ['init containers', /init containers/, ({ spec }) => (spec['initContainers'] = [{}])],
    [
      'a sidecar',
      /sidecar proxy/,
      ({ spec }) => (spec['initContainers'] = [{ name: 'proxy', restartPolicy: 'Always' }]),
    ],
    ['an ephemeral container', /debugger/, ({ spec }) => (spec['ephemeralContainers'] = [{ name: 'debugger' }])],
    ['one that has ended', /container job has ended/, withEnded],
    ['another runtime', /gvisor/, ({ spec }) => (spec['runtimeClassName'] = 'gvisor')],
  ];

  function withEnded(pod: Parameters<NonNullable<Parameters<typeof podSeen>[0]>>[0]): void {
    pod.spec['containers'] = [
      { name: 'main', image: 'redis' },
      { name: 'job', image: 'redis' },
    ];
    pod['status'] = { containerStatuses: [{ name: 'job', state: { terminated: { exitCode: 0 } } }] };
  }

  it('is refused with the reason', () => {
    expect(() => refuseUnmovable(podSeen())).not.toThrow();
    const claiming = podSeen(({ spec }) => {
      const read = { claimName: 'r', readOnly: true };
      spec['volumes'] = [
        { name: 'v', persistentVolumeClaim: { claimName: 'c' } },
        { name: 'r', persistentVolumeClaim: read },
      ];
      spec['containers'] = [{ name: 'main', image: 'redis', volumeMounts: [{ name: 'v', mountPath: '/v' }] }];
    });
    expect(() => refuseUnmovable(claiming)).not.toThrow();
    expect(movingVolumes(claiming)).toEqual(['v']);
    expect(lossesOf(claiming).join()).toMatch(/in its volume r, which it only reads/);
    for (const [, reason, edit] of refused) expect(() => refuseUnmovable(podSeen(edit))).toThrow(reason);
  });
});

describe('what the node says', () => {
  it('names images as the kubelet looks for them', () => {
    expect(fullName('redis')).toBe('docker.io/library/redis:latest');
    expect(fullName('bitnami/redis:7')).toBe('docker.io/bitnami/redis:7');
    expect(fullName('localhost/redis:latest')).toBe('localhost/redis:latest');
    expect(fullName('registry.example:5000/a/b')).toBe('registry.example:5000/a/b:latest');
    expect(fullName(`a/b@sha256:${'0'.repeat(64)}`)).toBe(`docker.io/a/b@sha256:${'0'.repeat(64)}`);
  });

  it('lists them', () => {
    const digest = `sha256:${'1'.repeat(64)}`;
    const row = `localhost/redis:latest application/vnd.oci.image.manifest.v1+json ${digest} 19.5 MiB  linux/amd64 - \n`;
    const header =
      'REF                    TYPE                                       DIGEST  SIZE      PLATFORMS   LABELS \n';
    expect(parseImages(header + row)).toEqual([
      { name: 'localhost/redis:latest', digest, size_bytes: Math.ceil(19.5 * 2 ** 20) },
    ]);
  });

  it('tells where a container writes', () => {
    const point = '/run/containerd/io.containerd.runtime.v2.task/k8s.io/x/rootfs';
    const options = 'rw,lowerdir=/s/1/fs:/s/2/fs,upperdir=/s/3/fs,workdir=/s/3/work';
    const line = `90 80 0:40 / ${point} rw,relatime shared:1 - overlay overlay ${options}`;
    expect(upperOf(`1 0 8:1 / / rw - ext4 /dev/vda rw\n${line}\n`, point)).toBe('/s/3/fs');
    expect(upperOf(line, '/elsewhere')).toBeUndefined();
    expect(containerId(`containerd://${'b'.repeat(64)}`)).toBe('b'.repeat(64));
    expect(containerId('docker://abc')).toBeUndefined();
  });
});

describe('a kubeconfig', () => {
  const text = `
apiVersion: v1
kind: Config
current-context: two
clusters:
- {name: c, cluster: {server: "https://192.0.2.1:6443/", certificate-authority-data: ${Buffer.from('CA').toString('base64')}}}
users:
- {name: a, user: {token: first}}
- {name: b, user: {token: second}}
contexts:
- {name: one, context: {cluster: c, user: a}}
- {name: two, context: {cluster: c, user: b, namespace: shop}}
`;

  it('is read for the context that is current', () => {
    expect(accessOf('/x', text)).toMatchObject({ server: 'https://192.0.2.1:6443', ca: 'CA', token: 'second' });
  });

  it('is refused when that leads nowhere', () => {
    expect(() => accessOf('/x', text.replace('current-context: two', 'current-context: three'))).toThrow(/current/);
  });
});
