import type { Driver, DriverOptions, EngineName } from './contract.ts';
import { createContainerdDriver } from './containerd/index.ts';
import { createDockerDriver } from './docker/index.ts';
import { createInitDriver } from './init/index.ts';
import { createKubernetesDriver } from './kubernetes/index.ts';
import { createMarathonDriver } from './marathon/index.ts';
import { createNomadDriver } from './nomad/index.ts';
import { createPodmanDriver } from './podman/index.ts';
import { createRuncDriver } from './runc/index.ts';
import { createSwarmDriver } from './swarm/index.ts';

/** Every engine of a host that ums knows, by name: a new one needs its folder and one line here. */
const FACTORIES: Record<Exclude<EngineName, 'init'>, (options: DriverOptions) => Driver> = {
  containerd: createContainerdDriver,
  docker: createDockerDriver,
  kubernetes: createKubernetesDriver,
  marathon: createMarathonDriver,
  nomad: createNomadDriver,
  podman: createPodmanDriver,
  runc: createRuncDriver,
  swarm: createSwarmDriver,
};

/** Within a container of a migratable image there is no engine but its init, and nowhere else is there one. */
export function createDrivers(options: DriverOptions): Map<EngineName, Driver> {
  const init = createInitDriver(options);
  if (init !== undefined) return new Map([[init.engine, init]]);
  return new Map(
    Object.values(FACTORIES)
      .map((create) => create(options))
      .map((driver) => [driver.engine, driver]),
  );
}
