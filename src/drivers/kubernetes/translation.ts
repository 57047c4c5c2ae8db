import { UmsError } from '#src/telemetry/errors.ts';
import { z } from 'zod';
import { imageSchema, type Specification } from '../specification.ts';
import type { Translated } from '../translation.ts';
import { nameOf, theContainer } from './describe.ts';
import { podOf } from './manifest.ts';
import { type Pod, podSchema } from './schema.ts';

/**
 * A pod of one container as a container of Podman's, and back. Both are containers of runc with nearly the same mounts and
 * namespaces, so the processes fit into either. What Podman has no words for is not lost: the manifest goes along as an
 * annotation, and is what the pod is made from again.
 */
export const POD_ANNOTATION = 'ums.pod';
/** Where a pod's container may leave its last words for the kubelet. Elsewhere nobody reads them. */
const TERMINATION_LOG = '/dev/termination-log';
const NOWHERE = '/dev/null';
/** Kubernetes' default capabilities that are not Podman's. */
const MORE_CAPABILITIES = ['CAP_AUDIT_WRITE', 'CAP_MKNOD', 'CAP_NET_RAW'];
const SHM_BYTES = 64 * 2 ** 20;
/** As an annotation it must fit into one word of a command. */
const MANIFEST_LIMIT = 65_536;
const HOSTNAME_LIMIT = 63;

const keptSchema = z.object({
  pod: z.object({ namespace: z.string().max(253), manifest: z.string().max(MANIFEST_LIMIT) }),
  image: imageSchema,
});

export function podmanOfPod(specification: Specification): Translated {
  const { namespace, pod } = podOf(specification);
  const { image } = specification;
  const reason = unfit(pod);
  if (reason !== undefined) throw refused(specification, reason.why, reason.mend);
  if (image.kind !== 'image' || image.configuration === undefined) {
    throw refused(specification, 'its image has no configuration by which Podman would know it', 'Pull it anew.');
  }
  const manifest = specification.pod?.manifest ?? '';
  if (manifest.length > MANIFEST_LIMIT) {
    throw refused(specification, `its manifest is longer than ${MANIFEST_LIMIT} characters`, 'Make it shorter.');
  }
  const kept = { pod: { namespace, manifest }, image };
  return {
    specification: {
      ...withoutPod(specification),
      engine: 'podman',
      image: { kind: 'image', id: image.configuration, names: image.names, size_bytes: image.size_bytes },
      // Podman would take commas and quotation marks for its own.
      annotations: { [POD_ANNOTATION]: Buffer.from(JSON.stringify(kept)).toString('base64url') },
      hostname: specification.hostname.slice(0, HOSTNAME_LIMIT).replace(/[-.]+$/, ''),
      mounts: [
        {
          kind: 'bind',
          source: NOWHERE,
          destination: terminationLog(pod),
          readOnly: false,
          options: ['rprivate'],
          transfer: 'expect',
        },
      ],
      resources: { pidsLimit: 0 },
      capabilities: { add: MORE_CAPABILITIES, drop: [] },
      securityOptions: ['seccomp=unconfined'],
      shmSize_bytes: SHM_BYTES,
      logDriver: 'k8s-file',
      namespaces: { pid: 'private', ipc: 'shareable', uts: 'private', user: '', cgroup: 'private' },
    },
    losses: lossesThere(pod),
  };
}

function withoutPod({ pod: _left, ...rest }: Specification): Specification {
  return rest;
}

function terminationLog(pod: Pod): string {
  const path = theContainer(pod)['terminationMessagePath'];
  return typeof path === 'string' && path.startsWith('/') ? path : TERMINATION_LOG;
}

/** What a container of Podman's could not have, or would not have again when Podman starts it anew. */
function unfit(pod: Pod): { why: string; mend: string } | undefined {
  const container = theContainer(pod);
  if (pod.spec.containers.length > 1) {
    return {
      why: 'it has several containers',
      mend: 'Between Kubernetes and Podman only pods of one container can be moved so far.',
    };
  }
  if (pod.spec['automountServiceAccountToken'] !== false) {
    return {
      why: 'it has the token of a service account, with which only its cluster can do something',
      mend: 'Make it with automountServiceAccountToken: false.',
    };
  }
  if (pod.spec.volumes.length > 0) {
    return {
      why: 'it has volumes',
      mend: 'Between Kubernetes and Podman only pods without volumes can be moved so far.',
    };
  }
  if (container.env.some(({ value }) => value === undefined) || isThere(container['envFrom'])) {
    return {
      why: 'its environment refers to other objects of its cluster',
      mend: 'Write the values into the manifest.',
    };
  }
  if (isThere(container['securityContext']) || isThere(pod.spec['securityContext'])) {
    return { why: 'it has a security context', mend: 'Give its image the user that it shall run as.' };
  }
  if (container.tty || container.stdin) return { why: 'it has a terminal or input', mend: 'Make it without them.' };
  return undefined;
}

function isThere(value: unknown): boolean {
  return typeof value === 'object' && value !== null && Object.keys(value).length > 0;
}

function lossesThere(pod: Pod): string[] {
  const container = theContainer(pod);
  return [
    ...(isThere(container['resources']) ? ['requests and limits: they are not in force in Podman'] : []),
    ...(isThere(container['readinessProbe']) ? ['its readiness probe: Podman does not ask'] : []),
    'services of its cluster do not lead to it: clients come through a Frontman',
  ];
}

export function podOfPodman(specification: Specification): Translated {
  const text = specification.annotations[POD_ANNOTATION];
  const kept = keptSchema.safeParse(
    text === undefined ? undefined : parsed(Buffer.from(text, 'base64url').toString('utf8')),
  );
  if (!kept.success || kept.data.image.kind !== 'image') {
    throw refused(
      specification,
      'it did not come from Kubernetes, and ums does not make up what a pod of it would be',
      'Between Podman and Kubernetes only what was a pod before can be moved so far.',
    );
  }
  const { pod, image } = kept.data;
  return {
    specification: {
      ...specification,
      engine: 'kubernetes',
      name: nameOf(podSchema.parse(parsed(pod.manifest))),
      // Its cluster knows it by a digest that no other archive of it has.
      image: { ...image, fixed: true },
      annotations: {},
      mounts: [],
      pod,
    },
    losses: [],
  };
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    if (error instanceof SyntaxError) return undefined;
    throw error;
  }
}

function refused({ name, engine }: Specification, why: string, mend: string): UmsError {
  const other = engine === 'kubernetes' ? 'Podman' : 'Kubernetes';
  return new UmsError('UMS_E_SPECIFICATION', {
    message: `${name} cannot be moved to ${other}: ${why}`,
    fault: 'user',
    state: 'Nothing was changed.',
    mend,
  });
}
