import { UmsError } from '#src/telemetry/errors.ts';
import { claimedVolumes, movingVolumes, nameOf, theContainer } from './describe.ts';
import { isTokenVolume, RUNTIME_CLASS } from './manifest.ts';
import { refused, type Unfit } from './owner-steps.ts';
import type { Owner } from './owner-told.ts';
import type { Pod, Volume } from './schema.ts';
import { sharedBetween } from './shared.ts';

/** Volumes whose content the destination's cluster has, under the same name, or makes itself. */
const OF_THE_CLUSTER = ['secret', 'configMap', 'projected', 'downwardAPI'];
/** What may stand above a pod: a ReplicaSet is that of a Deployment, or is refused later. */
const HELD_KINDS = ['ReplicaSet', 'StatefulSet'];
const SHARED_WITH_HOST = ['hostPID', 'hostIPC', 'hostNetwork', 'shareProcessNamespace'] as const;

/** Things of a pod that its copy elsewhere will not have, in words for the user. */
export function lossesOf(pod: Pod, owner?: Owner): string[] {
  const { containers } = pod.spec;
  const restarts = (pod.status?.containerStatuses ?? []).some(({ restartCount }) => restartCount > 0);
  return [
    ...(owner === undefined
      ? []
      : [
          `its ${owner.kind} ${owner.name}: it waits here until the service comes back, and elsewhere nobody replaces the pod`,
        ]),
    ...(containers.some(({ imagePullPolicy }) => imagePullPolicy === 'Always')
      ? ['that its image is pulled anew at every start']
      : []),
    ...pod.spec.volumes.flatMap(({ name, persistentVolumeClaim: claim }) =>
      claim?.readOnly === true
        ? [`what is in its volume ${name}, which it only reads: it finds what is claimed there`]
        : [],
    ),
    ...(restarts ? ['how often it was started again'] : []),
    `its address: it gets a new one, and open connections are closed${containers.length > 1 ? ', but for those over localhost' : ''}`,
    `its runtime class is ${RUNTIME_CLASS} there, which is runc but for the moment of the restore`,
    'its uid and creation time: the destination gives it new ones',
  ];
}

/** Throws for what cannot be moved at all, with the reason. */
export function refuseUnmovable(pod: Pod): void {
  const reason = unmovable(pod);
  if (reason !== undefined) throw refused(nameOf(pod), reason);
}

/** Throws for what its containers have open together, and each would have for itself afterwards. */
export function refuseShared(name: string, groups: readonly (readonly number[])[]): void {
  const what = groups.length < 2 ? undefined : sharedBetween(groups);
  if (what === undefined) return;
  throw new UmsError('UMS_E_SPECIFICATION', {
    message: `${name} cannot be moved: two of its containers share ${what}, and each is moved with its own`,
    fault: 'user',
    mend: 'Let them speak through files of a volume or over localhost.',
  });
}

function unmovable(pod: Pod): Unfit | undefined {
  return ofTheWhole(pod) ?? ofOtherContainers(pod) ?? ofContainers(pod) ?? ofVolumes(pod);
}

function ofTheWhole({ metadata, spec }: Pod): Unfit | undefined {
  const owner = metadata.ownerReferences.find(({ controller }) => controller === true);
  if (owner?.kind === 'Job') {
    return {
      why: `it belongs to Job ${owner.name}, which counts only what its own pods achieve, and would begin it anew`,
      mend: 'Let it end here; or give it a pod of its own, which can be moved.',
    };
  }
  if (owner !== undefined && !HELD_KINDS.includes(owner.kind)) {
    return {
      why: `it belongs to ${owner.kind} ${owner.name}, which would make another one in its place`,
      mend: 'Only pods of a Deployment or a StatefulSet, or of their own, can be moved so far.',
    };
  }
  if (metadata.deletionTimestamp !== undefined) return { why: 'it is being deleted', mend: 'Make it again first.' };
  const shared = SHARED_WITH_HOST.find((field) => spec[field]);
  if (shared !== undefined) {
    return { why: `its namespaces are not its container's own (${shared})`, mend: `Make it without ${shared}.` };
  }
  if (!['', 'runc', RUNTIME_CLASS].includes(spec.runtimeClassName ?? '')) {
    return {
      why: `its runtime class is ${spec.runtimeClassName}, and only runc can be dumped and restored here`,
      mend: 'Make it without a runtime class.',
    };
  }
  if ((metadata.annotations['kubernetes.io/config.source'] ?? 'api') !== 'api') {
    return { why: 'it is a static pod, which a file of this node makes', mend: 'Make it through the API server.' };
  }
  return undefined;
}

/** Containers that are not made by being named in the pod's list of containers, or do not live as long as it. */
function ofOtherContainers({ spec, status }: Pod): Unfit | undefined {
  const sidecar = spec.initContainers.find(({ restartPolicy }) => restartPolicy === 'Always');
  if (sidecar !== undefined) {
    return {
      why: `its sidecar ${sidecar.name} is an init container, which would begin anew`,
      mend: 'Make it one of its ordinary containers.',
    };
  }
  if (spec.initContainers.length > 0) {
    return { why: 'its init containers would run again', mend: 'Let its own program do what they do.' };
  }
  const [guest] = spec.ephemeralContainers;
  if (guest !== undefined) {
    return {
      why: `somebody has added the ephemeral container ${guest.name}, which no other pod can be made with`,
      mend: 'Make the pod again without it.',
    };
  }
  const over = status?.containerStatuses.find(({ state }) => state.terminated !== undefined);
  if (spec.containers.length > 1 && over !== undefined) {
    return {
      why: `its container ${over.name} has ended, and would begin anew`,
      mend: 'Wait until all of them run, or make the pod again without it.',
    };
  }
  return undefined;
}

function ofContainers(pod: Pod): Unfit | undefined {
  if (pod.spec.containers.some((one) => one.livenessProbe !== undefined || one.startupProbe !== undefined)) {
    return {
      why: 'the kubelet would take it for dead and kill it while it stands still (livenessProbe, startupProbe)',
      mend: 'Make it with a readinessProbe only.',
    };
  }
  if (pod.spec.containers.some((one) => (JSON.stringify(one['lifecycle']) ?? '').includes('postStart'))) {
    return { why: 'its postStart hook would run again', mend: 'Make it without one.' };
  }
  return undefined;
}

function ofVolumes(pod: Pod): Unfit | undefined {
  const moving = new Set(movingVolumes(pod));
  const foreign = pod.spec.volumes.find((volume) => !moving.has(volume.name) && !isOfTheCluster(pod, volume));
  if (foreign !== undefined) {
    const kind = Object.keys(foreign).find((field) => field !== 'name') ?? 'unknown';
    return {
      why: `its volume ${foreign.name} is of a kind that cannot be moved yet (${kind})`,
      mend: `It can have volumes of the kinds emptyDir, persistentVolumeClaim, ${OF_THE_CLUSTER.join(', ')}.`,
    };
  }
  const unseen = claimedVolumes(pod).find(
    ({ name }) => !theContainer(pod).volumeMounts.some((each) => each.name === name),
  );
  if (unseen !== undefined) {
    return {
      why: `its first container does not mount volume ${unseen.name}, which it claims`,
      mend: 'Let the container that uses it be the first.',
    };
  }
  if (pod.spec.containers.some(({ volumeDevices }) => volumeDevices.length > 0)) {
    return { why: 'it has a volume as a device (volumeDevices)', mend: 'Claim it as a file system.' };
  }
  const mounts = pod.spec.containers.flatMap(({ volumeMounts }) => volumeMounts);
  const partial = mounts.find(({ subPath, subPathExpr }) => (subPath ?? '') !== '' || (subPathExpr ?? '') !== '');
  if (partial !== undefined) {
    return { why: `it mounts a part of volume ${partial.name} (subPath)`, mend: 'Mount the whole of it.' };
  }
  return undefined;
}

function isOfTheCluster(pod: Pod, volume: Volume): boolean {
  const isReadOnly = volume.persistentVolumeClaim?.readOnly === true;
  return isReadOnly || isTokenVolume(pod, volume) || OF_THE_CLUSTER.some((kind) => kind in volume);
}
