import type { Mount, Specification } from '../specification.ts';

/** The runtime's name in Docker's configuration (engine-runtime.sh). */
export const RUNTIME = 'ums';

/**
 * Specification → body of Docker's `POST /containers/create`, such that inspecting the result says the same again. What is
 * undefined is not in the JSON.
 */
export function createBody(specification: Specification, image: string): Record<string, unknown> {
  const spec = specification;
  const volumes = spec.mounts.filter((mount) => mount.kind === 'volume' && mount.anonymous);
  const networks = spec.network.mode === 'bridge' ? spec.network.networks : [];
  return {
    Image: image,
    // An empty list, where leaving it out would mean the image's.
    Entrypoint: spec.entrypoint ?? [],
    Cmd: spec.command,
    Env: spec.env,
    WorkingDir: spec.workingDir,
    User: spec.user,
    // Docker refuses a host name where the container has none of its own.
    ...(spec.network.mode === 'host' || spec.namespaces.uts === 'host' ? {} : { Hostname: spec.hostname }),
    ...(spec.domainName === undefined ? {} : { Domainname: spec.domainName }),
    Labels: spec.labels,
    Tty: spec.tty,
    OpenStdin: spec.openStdin,
    ExposedPorts: Object.fromEntries(
      [...spec.exposedPorts, ...spec.ports.map((port) => `${port.containerPort}/${port.protocol}`)].map((port) => [
        port,
        {},
      ]),
    ),
    Volumes: Object.fromEntries(volumes.map((mount) => [mount.destination, {}])),
    ...(spec.stopSignal === undefined ? {} : { StopSignal: spec.stopSignal }),
    ...(spec.stopTimeout_s === undefined ? {} : { StopTimeout: spec.stopTimeout_s }),
    ...healthBody(spec),
    HostConfig: hostBody(spec),
    NetworkingConfig: {
      EndpointsConfig: Object.fromEntries(
        networks.map((name) => {
          const aliases = spec.network.aliases[name];
          return [name, aliases === undefined ? {} : { Aliases: aliases }];
        }),
      ),
    },
  };
}

function healthBody({ healthCheck }: Specification): Record<string, unknown> {
  if (healthCheck === undefined) return {};
  return {
    Healthcheck: {
      Test: healthCheck.test,
      Interval: healthCheck.interval_ms * 1e6,
      Timeout: healthCheck.timeout_ms * 1e6,
      Retries: healthCheck.retries,
      StartPeriod: healthCheck.startPeriod_ms * 1e6,
    },
  };
}

function hostBody(spec: Specification): Record<string, unknown> {
  const { network, resources: r, restartPolicy } = spec;
  return {
    Runtime: RUNTIME,
    Binds: spec.mounts.flatMap(bindOf),
    Tmpfs: Object.fromEntries(
      spec.mounts.flatMap((mount) => (mount.kind === 'tmpfs' ? [[mount.destination, mount.options.join(',')]] : [])),
    ),
    NetworkMode:
      network.mode === 'bridge' ? (network.networks[0] ?? 'bridge') : network.mode === 'host' ? 'host' : 'none',
    PortBindings: Object.fromEntries(
      [...Map.groupBy(spec.ports, (port) => `${port.containerPort}/${port.protocol}`)].map(([port, bindings]) => [
        port,
        bindings.map(({ hostIp, hostPort }) => ({ HostIp: hostIp, HostPort: String(hostPort) })),
      ]),
    ),
    RestartPolicy: {
      Name: restartPolicy.name,
      MaximumRetryCount: restartPolicy.name === 'on-failure' ? restartPolicy.retries : 0,
    },
    AutoRemove: spec.autoRemove,
    Annotations: spec.annotations,
    CapAdd: spec.capabilities.add,
    CapDrop: spec.capabilities.drop,
    Dns: network.dns,
    DnsOptions: network.dnsOptions,
    DnsSearch: network.dnsSearch,
    ExtraHosts: network.extraHosts,
    GroupAdd: spec.groups,
    IpcMode: spec.namespaces.ipc,
    PidMode: spec.namespaces.pid,
    UTSMode: spec.namespaces.uts,
    UsernsMode: spec.namespaces.user,
    CgroupnsMode: spec.namespaces.cgroup,
    Privileged: spec.privileged,
    ReadonlyRootfs: spec.readOnlyRootfs,
    SecurityOpt: spec.securityOptions,
    Sysctls: spec.sysctls,
    // Leaving it out is how a person does without.
    Init: spec.init ? true : undefined,
    Devices: spec.devices.map(({ source, destination, permissions }) => ({
      PathOnHost: source,
      PathInContainer: destination,
      CgroupPermissions: permissions,
    })),
    Ulimits: spec.ulimits.map(({ name, soft, hard }) => ({ Name: name, Soft: soft, Hard: hard })),
    ...(spec.logDriver === undefined ? {} : { LogConfig: { Type: spec.logDriver, Config: spec.logOptions } }),
    ShmSize: spec.shmSize_bytes,
    Memory: r.memory_bytes,
    MemorySwap: r.memorySwap_bytes,
    MemoryReservation: r.memoryReservation_bytes,
    MemorySwappiness: r.memorySwappiness,
    CpuShares: r.cpuShares,
    CpuQuota: r.cpuQuota_us,
    CpuPeriod: r.cpuPeriod_us,
    NanoCpus: r.cpus_nano,
    CpusetCpus: r.cpusetCpus,
    CpusetMems: r.cpusetMems,
    OomScoreAdj: r.oomScoreAdj,
    CgroupParent: r.cgroupParent,
    PidsLimit: r.pidsLimit,
  };
}

function bindOf(mount: Mount): string[] {
  if (mount.kind === 'tmpfs' || (mount.kind === 'volume' && mount.anonymous)) return [];
  const source = mount.kind === 'volume' ? mount.name : mount.source;
  return [`${source}:${mount.destination}:${[mount.readOnly ? 'ro' : 'rw', ...mount.options].join(',')}`];
}
