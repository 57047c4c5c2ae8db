import { limitsOf, networkOf, portsOf, restartPolicyOf, tmpfsOf } from '../oci/told.ts';
import type { Image, Mount, Specification } from '../specification.ts';
import type { Inspect, InspectMount, Volume } from './schema.ts';

/** What of the container lies outside `podman inspect` of it. */
export interface Surroundings {
  image: Image;
  volumes: ReadonlyMap<string, Volume>;
  sysctls: Record<string, string>;
  /** Paths of devices inside the container. */
  devices: readonly string[];
}

/** Annotations that Podman and the image make themselves, or that stand for an option which is told elsewhere. */
const MADE_ANNOTATIONS =
  /^(io\.podman\.annotations\.|org\.systemd\.property\.|org\.opencontainers\.image\.|io\.container\.manager$)/;

/** Of these nothing moves, and nobody has to say so. */
const SAME_EVERYWHERE = ['/dev/null'];

/** `podman inspect` of a container → what it is, in no engine's words. */
export function specificationOf(inspect: Inspect, around: Surroundings): Specification {
  const { Config: config, HostConfig: host } = inspect;
  const entrypoint = typeof config.Entrypoint === 'string' ? [config.Entrypoint] : (config.Entrypoint ?? []);
  const health = config.Healthcheck;
  return {
    version: 1,
    engine: 'podman',
    name: inspect.Name,
    image: around.image,
    entrypoint: entrypoint.filter((word) => word !== ''),
    command: config.Cmd,
    env: config.Env,
    workingDir: config.WorkingDir === '' ? '/' : config.WorkingDir,
    user: config.User,
    groups: host.GroupAdd,
    hostname: config.Hostname,
    labels: config.Labels,
    annotations: Object.fromEntries(
      Object.entries(config.Annotations).filter(([name]) => !MADE_ANNOTATIONS.test(name)),
    ),
    mounts: [...inspect.Mounts.map((mount) => mountOf(mount, around.volumes)), ...tmpfsOf(host.Tmpfs)],
    ports: portsOf(host.PortBindings),
    exposedPorts: Object.keys(config.ExposedPorts).filter((port) => !(port in host.PortBindings)),
    // Podman adds the id's beginning, the host name and the name as aliases.
    network: networkOf(
      host,
      inspect.NetworkSettings.Networks,
      new Set([inspect.Id.slice(0, 12), config.Hostname, inspect.Name]),
      !inspect.UseImageHosts,
    ),
    restartPolicy: restartPolicyOf(host.RestartPolicy),
    // Podman shows 0 or -1 where nothing was asked for.
    resources: { ...limitsOf(host), ...(host.MemorySwappiness > 0 ? { memorySwappiness: host.MemorySwappiness } : {}) },
    ulimits: host.Ulimits.map(({ Name, Soft, Hard }) => ({
      name: Name.replace(/^RLIMIT_/, '').toLowerCase(),
      soft: Soft,
      hard: Hard,
    })),
    // A privileged container has what its host has: what is missing there says nothing about the next host.
    capabilities: host.Privileged ? { add: [], drop: [] } : { add: host.CapAdd, drop: host.CapDrop },
    privileged: host.Privileged,
    readOnlyRootfs: host.ReadonlyRootfs,
    securityOptions: host.SecurityOpt.filter((option) => !(host.Privileged && option === 'unmask=all')),
    devices: devicesOf(inspect, around.devices),
    ...(config.StopSignal === null || config.StopSignal === undefined ? {} : { stopSignal: String(config.StopSignal) }),
    ...(config.StopTimeout === null || config.StopTimeout === undefined ? {} : { stopTimeout_s: config.StopTimeout }),
    init: config.Annotations['io.podman.annotations.init'] === 'TRUE',
    tty: config.Tty,
    openStdin: config.OpenStdin,
    ...(health === null || health === undefined || health.Test.length === 0
      ? {}
      : {
          healthCheck: {
            test: health.Test,
            interval_ms: Math.round(health.Interval / 1e6),
            timeout_ms: Math.round(health.Timeout / 1e6),
            retries: health.Retries,
            startPeriod_ms: Math.round(health.StartPeriod / 1e6),
            onFailure: failureActionOf(config.HealthcheckOnFailureAction),
          },
        }),
    shmSize_bytes: host.ShmSize,
    sysctls: around.sysctls,
    logDriver: host.LogConfig.Type,
    logOptions: logOptionsOf(inspect),
    autoRemove: host.AutoRemove,
    ...(config.Umask === null || config.Umask === undefined ? {} : { umask: config.Umask }),
    ...(config.Timezone === null || config.Timezone === undefined ? {} : { timezone: config.Timezone }),
    ...(config.Timeout === null || config.Timeout === undefined || config.Timeout === 0
      ? {}
      : { runLimit_s: config.Timeout }),
    namespaces: {
      pid: host.PidMode,
      ipc: host.IpcMode,
      uts: host.UTSMode,
      user: host.UsernsMode,
      cgroup: host.CgroupMode,
    },
  };
}

function devicesOf(inspect: Inspect, made: readonly string[]): Specification['devices'] {
  const told = inspect.HostConfig.Devices.map((device) => ({
    source: device.PathOnHost,
    destination: device.PathInContainer,
    permissions: device.CgroupPermissions,
  }));
  // A privileged container has every device of its host.
  if (inspect.HostConfig.Privileged) return told;
  const known = new Set(told.map((device) => device.destination));
  const untold = made.filter((path) => !known.has(path));
  return [...told, ...untold.map((path) => ({ source: path, destination: path, permissions: 'rwm' }))];
}

function mountOf(mount: InspectMount, volumes: ReadonlyMap<string, Volume>): Mount {
  const options = [...mount.Options, ...(mount.Propagation === '' ? [] : [mount.Propagation])];
  const common = { destination: mount.Destination, readOnly: !mount.RW, options };
  if (mount.Type !== 'volume' || mount.Name === undefined) {
    const transfer = SAME_EVERYWHERE.includes(mount.Source) ? 'expect' : 'undecided';
    return { kind: 'bind', source: mount.Source, ...common, transfer };
  }
  const volume = volumes.get(mount.Name);
  return {
    kind: 'volume',
    name: mount.Name,
    ...common,
    anonymous: volume?.Anonymous ?? false,
    labels: volume?.Labels ?? {},
    plain: volume === undefined || (volume.Driver === 'local' && Object.keys(volume.Options).length === 0),
    shared: false,
  };
}

function failureActionOf(action: string | null | undefined): 'none' | 'kill' | 'restart' | 'stop' {
  return action === 'kill' || action === 'restart' || action === 'stop' ? action : 'none';
}

function logOptionsOf(inspect: Inspect): Record<string, string> {
  const log = inspect.HostConfig.LogConfig;
  const ownPath = log.Path === '' || log.Path.startsWith(`${inspect.StaticDir}/`);
  return {
    ...(ownPath ? {} : { path: log.Path }),
    ...(log.Tag === '' ? {} : { tag: log.Tag }),
    ...(log.Size === '0B' || log.Size === '' ? {} : { 'max-size': log.Size }),
  };
}
