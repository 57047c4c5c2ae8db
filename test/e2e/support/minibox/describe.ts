import { bareNetwork, type Specification } from '#src/drivers/specification.ts';
import { wordsOf } from './cli.ts';

/** A box → what it is: its words, and what every box is alike in. */
export async function specificationOf(name: string): Promise<Specification> {
  return {
    version: 1,
    engine: 'x-minibox',
    name,
    image: { kind: 'rootfs' },
    command: await wordsOf(name, 'command'),
    env: await wordsOf(name, 'env'),
    workingDir: '/',
    user: '0:0',
    groups: [],
    hostname: name,
    labels: {},
    annotations: {},
    mounts: [],
    ports: [],
    exposedPorts: [],
    network: bareNetwork('host'),
    restartPolicy: { name: 'no', retries: 0 },
    resources: {},
    ulimits: [],
    capabilities: { add: [], drop: [] },
    privileged: false,
    readOnlyRootfs: false,
    securityOptions: [],
    devices: [],
    init: false,
    tty: false,
    openStdin: false,
    sysctls: {},
    logOptions: {},
    autoRemove: false,
    namespaces: { pid: 'private', ipc: 'private', uts: 'private', user: '', cgroup: 'host' },
  };
}
