import type { Tree } from '../contract.ts';
import { bareNetwork, type Image, type Mount, type Specification } from '../specification.ts';
import { labelsOf, manifestOf } from './manifest.ts';
import { type Bundle, emptyDirPath, SHM } from './node.ts';
import type { Owner } from './owner-told.ts';
import type { Pod } from './schema.ts';

const DEFAULT_NAMESPACE = 'default';

/** What people call it: pods of the namespace `default` by their name alone. */
export function nameOf({ metadata: { namespace, name } }: Pod): string {
  return namespace === DEFAULT_NAMESPACE ? name : `${namespace}.${name}`;
}

export function theContainer(pod: Pod): Pod['spec']['containers'][number] {
  const [container] = pod.spec.containers;
  if (container === undefined) throw new Error('a pod without containers');
  return container;
}

/** What its containers were made from, in their order, as the pod says it. */
export function imageNames({ spec }: Pod): [string, ...string[]] {
  const [first, ...others] = spec.containers.map(({ image }) => image);
  if (first === undefined) throw new Error('a pod without containers');
  return [first, ...others];
}

/**
 * A pod → what it is, in no engine's words, and its own manifest, which is the specification there. Of several containers it is the
 * first whose program is named; `images` begins with its own.
 */
export function specificationOf(pod: Pod, images: readonly [Image, ...Image[]], owner?: Owner): Specification {
  const { metadata, spec } = pod;
  const [image, ...others] = images;
  const ports = spec.containers.flatMap((one) => one.ports);
  const container = theContainer(pod);
  return {
    version: 1,
    engine: 'kubernetes',
    name: nameOf(pod),
    image,
    ...(container.command.length === 0 ? {} : { entrypoint: container.command }),
    command: container.args,
    env: container.env.flatMap(({ name, value }) => (value === undefined ? [] : [`${name}=${value}`])),
    workingDir: container.workingDir ?? '/',
    user: '',
    groups: [],
    hostname: spec.hostname ?? metadata.name,
    labels: labelsOf(pod),
    annotations: metadata.annotations,
    mounts: mountsOf(pod),
    ports: ports.flatMap(({ hostPort, hostIP, containerPort, protocol }) =>
      hostPort === undefined || hostPort === 0
        ? []
        : [{ hostIp: hostIP ?? '', hostPort, containerPort, protocol: protocolOf(protocol) }],
    ),
    exposedPorts: ports.map(({ containerPort, protocol }) => `${containerPort}/${protocol.toLowerCase()}`),
    network: bareNetwork('bridge', true),
    restartPolicy: { name: RESTART[spec.restartPolicy] ?? 'always', retries: 0 },
    resources: {},
    ulimits: [],
    capabilities: { add: [], drop: [] },
    privileged: false,
    readOnlyRootfs: false,
    securityOptions: [],
    devices: [],
    ...(spec.terminationGracePeriodSeconds === undefined ? {} : { stopTimeout_s: spec.terminationGracePeriodSeconds }),
    init: false,
    tty: container.tty,
    openStdin: container.stdin,
    sysctls: {},
    logOptions: {},
    autoRemove: false,
    namespaces: { pid: '', ipc: '', uts: '', user: '', cgroup: '' },
    pod: {
      namespace: metadata.namespace,
      manifest: JSON.stringify(manifestOf(pod, owner)),
      ...(others.length === 0 ? {} : { images: others }),
    },
    ...(spec.containers.length === 1 ? {} : { containers: spec.containers.length }),
  };
}

const RESTART: Record<string, 'no' | 'always' | 'on-failure'> = {
  Never: 'no',
  Always: 'always',
  OnFailure: 'on-failure',
};

function protocolOf(protocol: string): 'tcp' | 'udp' | 'sctp' {
  return protocol === 'UDP' ? 'udp' : protocol === 'SCTP' ? 'sctp' : 'tcp';
}

/** Volumes that live as long as the pod. */
export function emptyDirs(pod: Pod): string[] {
  return pod.spec.volumes.filter((volume) => 'emptyDir' in volume).map(({ name }) => name);
}

/** Volumes that it claims to write to: what is in them moves into what is claimed by the same name where it arrives. */
export function claimedVolumes(pod: Pod): { name: string; claim: string }[] {
  return pod.spec.volumes.flatMap(({ name, persistentVolumeClaim: claim }) =>
    claim === undefined || claim.readOnly ? [] : [{ name, claim: claim.claimName }],
  );
}

/** Volumes whose content moves. The others are the cluster's. */
export function movingVolumes(pod: Pod): string[] {
  return [...emptyDirs(pod), ...claimedVolumes(pod).map(({ name }) => name)];
}

/** Where the volumes that it claims are on this node, by their names: what its first container has mounted. */
export function claimPaths(pod: Pod, { sources }: Bundle): Record<string, string> {
  const { volumeMounts } = theContainer(pod);
  return Object.fromEntries(
    claimedVolumes(pod).flatMap(({ name }) => {
      const mount = volumeMounts.find((each) => each.name === name);
      const path = mount === undefined ? undefined : sources.get(mount.mountPath);
      return path === undefined ? [] : [[name, path]];
    }),
  );
}

/** A volume that several containers mount is named once. */
function mountsOf(pod: Pod): Mount[] {
  const moving = new Set(movingVolumes(pod));
  const own = new Set(emptyDirs(pod));
  const mounts = pod.spec.containers.flatMap(({ volumeMounts }) => volumeMounts).toReversed();
  const first = new Map(mounts.map((mount) => [mount.name, mount]));
  return [...first.values()].toReversed().flatMap(({ name, mountPath, readOnly }): Mount[] =>
    moving.has(name)
      ? [
          {
            kind: 'volume',
            name,
            destination: mountPath,
            readOnly,
            options: [],
            anonymous: own.has(name),
            labels: {},
            plain: true,
            shared: false,
          },
        ]
      : [],
  );
}

/** What the writable layers of its containers are called on their way. */
export function upperIds({ spec }: Pod): string[] {
  return spec.containers.map(({ name }, at) => (at === 0 ? 'upper' : `upper:${name}`));
}

/** Where what moves of it is on this node; the bundles are those of its containers. */
export function sourceTrees(pod: Pod, bundles: readonly Bundle[]): Tree[] {
  const [first] = bundles;
  const shm = first?.sources.get(SHM);
  const claims = first === undefined ? {} : claimPaths(pod, first);
  return [
    ...upperIds(pod).flatMap((id, at) => {
      const path = bundles[at]?.upper;
      return path === undefined ? [] : [{ id, path, kind: 'overlay-upper' as const }];
    }),
    ...(shm === undefined ? [] : [{ id: 'shm', path: shm, kind: 'plain' as const }]),
    ...emptyDirs(pod).map((name) => ({
      id: `volume:${name}`,
      path: emptyDirPath(pod.metadata.uid, name),
      kind: 'plain' as const,
    })),
    ...Object.entries(claims).map(([name, path]) => ({ id: `volume:${name}`, path, kind: 'plain' as const })),
  ];
}
