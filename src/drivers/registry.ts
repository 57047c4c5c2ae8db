import type { Driver, DriverOptions, EngineName } from './contract.ts';
import { createPodmanDriver } from './podman/index.ts';

/** Every engine that ums knows, by name: a new one needs its folder and one line here. */
const FACTORIES: Partial<Record<EngineName, (options: DriverOptions) => Driver>> = {
  podman: createPodmanDriver,
};

export function createDrivers(options: DriverOptions): Map<EngineName, Driver> {
  return new Map(
    Object.values(FACTORIES)
      .map((create) => create(options))
      .map((driver) => [driver.engine, driver]),
  );
}
