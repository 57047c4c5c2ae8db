import type { Driver, DriverOptions, EngineName } from './contract.ts';
import { createContainerdDriver } from './containerd/index.ts';
import { createDockerDriver } from './docker/index.ts';
import { createKubernetesDriver } from './kubernetes/index.ts';
import { createPodmanDriver } from './podman/index.ts';
import { createRuncDriver } from './runc/index.ts';

/** Every engine that ums knows, by name: a new one needs its folder and one line here. */
const FACTORIES: Record<EngineName, (options: DriverOptions) => Driver> = {
  containerd: createContainerdDriver,
  docker: createDockerDriver,
  kubernetes: createKubernetesDriver,
  podman: createPodmanDriver,
  runc: createRuncDriver,
};

export function createDrivers(options: DriverOptions): Map<EngineName, Driver> {
  return new Map(
    Object.values(FACTORIES)
      .map((create) => create(options))
      .map((driver) => [driver.engine, driver]),
  );
}
