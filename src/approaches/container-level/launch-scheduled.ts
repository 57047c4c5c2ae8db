import { totalmem } from 'node:os';
import type { Launch } from './launch.ts';
import { SECURITY_OPTIONS } from './needs.ts';

/**
 * An empty capsule in the words of schedulers that are asked over HTTP. Both keep it on this host, on the host's network, and
 * begin nothing anew by themselves as far as they can be told so. What they would begin is empty: the service within has come
 * from elsewhere, and nothing in these words says what it is.
 */
/** What a capsule needs before a service has come to it; the host is asked for no more, and sets no limit below its own. */
const RESERVED_MIB = 512;
const CPU_MHZ = 100;
const CPU_SHARE = 0.1;
/** That a service has to end in, when it is told to. */
const GRACE_S = 30;
/** The longest that Marathon waits with the next task after one has ended. It cannot be told not to make another. */
const BACKOFF_S = 3600;

interface Granted extends Pick<Launch, 'name' | 'args'> {
  image: string;
  /** All of them, without `CAP_`. */
  grants: readonly string[];
}

/** Where a job shall run. */
export interface Place {
  node: string;
  datacenter: string;
  pool: string | undefined;
  namespace: string;
}

export interface CapsuleJob {
  ID: string;
  Namespace: string;
}

function hostMemory_mib(): number {
  return Math.floor(totalmem() / 2 ** 20);
}

/** A job of Nomad's, as its HTTP interface takes it. Times are in billionths of a second. */
export function capsuleJob({ name, args, image, grants }: Granted, place: Place): CapsuleJob {
  const config = {
    image,
    args,
    network_mode: 'host',
    cap_add: grants,
    security_opt: SECURITY_OPTIONS,
    // Otherwise what is reserved would be the limit.
    memory_hard_limit: hostMemory_mib(),
  };
  const task = {
    Name: name,
    Driver: 'docker',
    Config: config,
    Resources: { CPU: CPU_MHZ, MemoryMB: RESERVED_MIB },
    KillTimeout: GRACE_S * 1e9,
  };
  const group = {
    Name: name,
    Count: 1,
    Tasks: [task],
    // One that has ended, because its service has or has moved on, is not begun anew: not here, and not on another node.
    RestartPolicy: { Attempts: 0, Mode: 'fail' },
    ReschedulePolicy: { Attempts: 0, Unlimited: false },
  };
  const job = {
    ID: name,
    Name: name,
    Namespace: place.namespace,
    Type: 'service',
    Datacenters: [place.datacenter],
    ...(place.pool === undefined ? {} : { NodePool: place.pool }),
    Constraints: [{ LTarget: '${node.unique.id}', RTarget: place.node, Operand: '=' }],
    TaskGroups: [group],
  };
  return job;
}

/** An app of Marathon's, but for its id. */
export function capsuleApp({ args, image, grants }: Omit<Granted, 'name'>, host: string): object {
  const options = [
    ...grants.map((each) => ['cap-add', each]),
    ...SECURITY_OPTIONS.map((each) => ['security-opt', each]),
    // After Mesos' own, which is what is reserved.
    ['memory', `${hostMemory_mib()}m`],
  ];
  return {
    args,
    instances: 1,
    cpus: CPU_SHARE,
    mem: RESERVED_MIB,
    container: {
      type: 'DOCKER',
      docker: { image, forcePullImage: false, parameters: options.map(([key, value]) => ({ key, value })) },
    },
    networks: [{ mode: 'host' }],
    // Its ports are chosen already, and are open by themselves.
    portDefinitions: [],
    constraints: [['hostname', 'CLUSTER', host]],
    taskKillGracePeriodSeconds: GRACE_S,
    backoffSeconds: BACKOFF_S,
    backoffFactor: 1,
    maxLaunchDelaySeconds: BACKOFF_S,
    unreachableStrategy: 'disabled',
    // Never a second one beside the first.
    upgradeStrategy: { minimumHealthCapacity: 0, maximumOverCapacity: 0 },
  };
}
