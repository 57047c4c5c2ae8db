import { bareNetwork, type Image, type Specification } from '../specification.ts';

/** A service that is stopped, and whose container is gone: nothing more is known of it, and nothing of it can move. */
export function bareSpecification(engine: Specification['engine'], name: string, image: Image): Specification {
  return {
    version: 1,
    engine,
    name,
    image,
    command: [],
    env: [],
    workingDir: '/',
    user: '',
    groups: [],
    hostname: '',
    labels: {},
    annotations: {},
    mounts: [],
    ports: [],
    network: bareNetwork('bridge'),
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
    exposedPorts: [],
    namespaces: { pid: '', ipc: '', uts: '', user: '', cgroup: '' },
  };
}
