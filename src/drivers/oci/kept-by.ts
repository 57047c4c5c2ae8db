/**
 * Who marks the containers that it makes, and makes another one as soon as one is gone. To move such a container by its engine
 * alone would end in two active copies.
 */
const KEEPERS: readonly { label: string; who: (value: string) => string; mend: string }[] = [
  {
    label: 'com.docker.swarm.service.name',
    who: (service) => `the service ${service} of Docker Swarm`,
    mend: 'Run its image as a container of its own (docker run), or in a capsule (ums capsule wrap).',
  },
  {
    label: 'io.kubernetes.pod.name',
    who: (pod) => `the pod ${pod} of Kubernetes`,
    mend: 'Ask for the pod instead, by its own name.',
  },
  {
    label: 'com.hashicorp.nomad.alloc_id',
    who: (allocation) => `the allocation ${allocation} of Nomad`,
    mend: 'Run its image as a container of its own, or in a capsule (ums capsule wrap).',
  },
  {
    label: 'MESOS_TASK_ID',
    who: (task) => `the task ${task} of Mesos`,
    mend: 'Run its image as a container of its own, or in a capsule (ums capsule wrap).',
  },
  {
    label: 'com.amazonaws.ecs.task-arn',
    who: (task) => `the task ${task} of Amazon ECS`,
    mend: 'Run its image as a container of its own, or in a capsule (ums capsule wrap).',
  },
];

/** Why a container with these labels cannot be moved; undefined when nobody keeps it running. */
export function keptBy(labels: Readonly<Record<string, string>>): { why: string; mend: string } | undefined {
  for (const { label, who, mend } of KEEPERS) {
    const value = labels[label];
    if (value !== undefined) {
      return { why: `it belongs to ${who(value)}, which would make another one in its place`, mend };
    }
  }
  return undefined;
}
