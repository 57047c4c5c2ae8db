import { limitsOf, networkOf, portsOf, restartPolicyOf, tmpfsOf } from '../oci/told.ts';
import type { Image, Mount, Specification } from '../specification.ts';
import type { Inspect, InspectMount, Volume } from './schema.ts';

/** With this label Docker marks volumes that it has named itself. */
const ANONYMOUS = 'com.docker.volume.anonymous';
/** What Docker says where a person said nothing. */
const DEFAULT_SHM_BYTES = 64 * 1024 * 1024;

/** `docker inspect` of a container → what it is, in no engine's words. */
export function specificationOf(inspect: Inspect, image: Image, volumes: ReadonlyMap<string, Volume>): Specification {
  const { Config: config, HostConfig: host } = inspect;
  const health = config.Healthcheck;
  return {
    version: 1,
    engine: 'docker',
    name: nameOf(inspect),
    image,
    ...(config.Entrypoint.length === 0 ? {} : { entrypoint: config.Entrypoint }),
    command: config.Cmd,
    env: config.Env,
    workingDir: config.WorkingDir === '' ? '/' : config.WorkingDir,
    user: config.User,
    groups: host.GroupAdd,
    hostname: config.Hostname,
    ...(config.Domainname === '' ? {} : { domainName: config.Domainname }),
    labels: config.Labels,
    annotations: host.Annotations,
    mounts: [
      ...inspect.Mounts.flatMap((mount) => mountOf(mount, volumes)),
      ...tmpfsOf(host.Tmpfs),
      ...longTmpfsOf(host),
    ],
    // Without a port of the host, Docker chooses one at each start.
    ports: portsOf(host.PortBindings).filter(({ hostPort }) => hostPort > 0),
    exposedPorts: Object.keys(config.ExposedPorts).filter((port) => !(port in host.PortBindings)),
    // Docker adds the id's beginning as an alias.
    network: networkOf(
      host,
      inspect.NetworkSettings.Networks,
      new Set([inspect.Id.slice(0, 12), config.Hostname]),
      true,
    ),
    restartPolicy: restartPolicyOf(host.RestartPolicy),
    resources: resourcesOf(host),
    ulimits: host.Ulimits.map(({ Name, Soft, Hard }) => ({ name: Name, soft: Soft, hard: Hard })),
    capabilities: { add: host.CapAdd, drop: host.CapDrop },
    privileged: host.Privileged,
    readOnlyRootfs: host.ReadonlyRootfs,
    // Docker adds this one by itself, for the label to be none.
    securityOptions: host.SecurityOpt.filter((option) => !(host.Privileged && option === 'label=disable')),
    devices: host.Devices.map((device) => ({
      source: device.PathOnHost,
      destination: device.PathInContainer,
      permissions: device.CgroupPermissions,
    })),
    ...(config.StopSignal === null || config.StopSignal === undefined ? {} : { stopSignal: config.StopSignal }),
    ...(config.StopTimeout === null || config.StopTimeout === undefined ? {} : { stopTimeout_s: config.StopTimeout }),
    init: host.Init,
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
            onFailure: 'none' as const,
          },
        }),
    shmSize_bytes: host.ShmSize === 0 ? DEFAULT_SHM_BYTES : host.ShmSize,
    sysctls: host.Sysctls,
    logDriver: host.LogConfig.Type,
    logOptions: host.LogConfig.Config,
    autoRemove: host.AutoRemove,
    namespaces: {
      pid: host.PidMode,
      ipc: host.IpcMode,
      uts: host.UTSMode,
      user: host.UsernsMode,
      cgroup: host.CgroupnsMode,
    },
  };
}

export function nameOf(inspect: Inspect): string {
  return inspect.Name.slice(1);
}

function mountOf(mount: InspectMount, volumes: ReadonlyMap<string, Volume>): Mount[] {
  // As `-v` takes them: Docker says the access in a field of its own.
  const given = mount.Mode.split(',').filter((word) => word !== '' && word !== 'ro' && word !== 'rw');
  const options = [...given, ...(['', 'rprivate', ...given].includes(mount.Propagation) ? [] : [mount.Propagation])];
  const common = { destination: mount.Destination, readOnly: !mount.RW, options };
  if (mount.Type === 'bind') return [{ kind: 'bind', source: mount.Source, ...common, transfer: 'undecided' }];
  if (mount.Type !== 'volume' || mount.Name === undefined) return [];
  const volume = volumes.get(mount.Name);
  const { [ANONYMOUS]: anonymous, ...labels } = volume?.Labels ?? {};
  return [
    {
      kind: 'volume',
      name: mount.Name,
      ...common,
      // How SELinux labels it and whether it is filled from the image is for the engine to say anew.
      options: options.filter((word) => word !== 'z' && word !== 'Z'),
      anonymous: anonymous !== undefined,
      labels,
      plain: volume === undefined || (volume.Driver === 'local' && Object.keys(volume.Options).length === 0),
      shared: false,
    },
  ];
}

/** `--mount type=tmpfs`, which has its size and mode in fields. */
function longTmpfsOf(host: Inspect['HostConfig']): Mount[] {
  return host.Mounts.flatMap(({ Type: type, Target: destination, TmpfsOptions: options }): Mount[] => {
    if (type !== 'tmpfs') return [];
    const { SizeBytes: size = 0, Mode: mode = 0 } = options ?? {};
    const words = [...(size > 0 ? [`size=${size}`] : []), ...(mode > 0 ? [`mode=${mode.toString(8)}`] : [])];
    return [{ kind: 'tmpfs', destination, options: words }];
  });
}

function resourcesOf(host: Inspect['HostConfig']): Specification['resources'] {
  const { MemorySwappiness: swappiness = null, NanoCpus: cpus } = host;
  return {
    ...limitsOf(host),
    ...(swappiness === null || swappiness < 0 ? {} : { memorySwappiness: swappiness }),
    ...(cpus > 0 ? { cpus_nano: cpus } : {}),
  };
}
