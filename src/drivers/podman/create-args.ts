import { POD_ANNOTATION } from '../kubernetes/translation.ts';
import type { Mount, Specification } from '../specification.ts';

/** What `podman create` must be told beyond the specification. */
export interface CreateContext {
  /** A name or id by which the destination knows the image. */
  image: string;
}

/** Specification → arguments of `podman create`, such that `podman inspect` of the result says the same again. */
export function createArguments(specification: Specification, context: CreateContext): string[] {
  const spec = specification;
  const flags: string[] = ['--name', spec.name, '--pull', 'never', '--unsetenv-all'];
  const each = (flag: string, values: readonly string[]): void => {
    for (const value of values) flags.push(flag, value);
  };
  const maybe = (flag: string, value: string | number | undefined): void => {
    if (value !== undefined && value !== '') flags.push(flag, String(value));
  };

  each('--env', spec.env);
  maybe('--workdir', spec.workingDir);
  maybe('--user', spec.user);
  each('--group-add', spec.groups);
  if (spec.network.mode !== 'host' && spec.namespaces.uts === 'private') maybe('--hostname', spec.hostname);
  each('--label', pairs(spec.labels));
  each('--annotation', pairs(spec.annotations));
  flags.push(...spec.mounts.flatMap(mountArguments));
  // Kubernetes makes no volumes for what an image declares, so a service that was a pod has none.
  if (POD_ANNOTATION in spec.annotations) flags.push('--image-volume', 'ignore');
  each(
    '--publish',
    spec.ports.map((port) => {
      const ip = port.hostIp === '' ? '' : `${port.hostIp.includes(':') ? `[${port.hostIp}]` : port.hostIp}:`;
      return `${ip}${port.hostPort}:${port.containerPort}/${port.protocol}`;
    }),
  );
  each('--expose', spec.exposedPorts);
  flags.push(...networkArguments(spec));
  flags.push(...policyArguments(spec));
  flags.push(...resourceArguments(spec));
  flags.push(...securityArguments(spec));
  flags.push(...processArguments(spec));
  flags.push(...healthArguments(spec));
  flags.push(
    '--entrypoint',
    spec.entrypoint === undefined || spec.entrypoint.length === 0 ? '' : JSON.stringify(spec.entrypoint),
  );
  return [...flags, context.image, ...spec.command];
}

function pairs(record: Record<string, string>): string[] {
  return Object.entries(record).map(([name, value]) => `${name}=${value}`);
}

function mountArguments(mount: Mount): string[] {
  switch (mount.kind) {
    case 'tmpfs':
      return ['--tmpfs', [mount.destination, mount.options.join(',')].filter((part) => part !== '').join(':')];
    case 'volume': {
      const options = [mount.readOnly ? 'ro' : 'rw', ...mount.options].join(',');
      // Without a name Podman makes an anonymous volume, which goes away with its container as it did at the source.
      return ['--volume', mount.anonymous ? mount.destination : `${mount.name}:${mount.destination}:${options}`];
    }
    case 'bind':
      return [
        '--volume',
        [mount.source, mount.destination, [mount.readOnly ? 'ro' : 'rw', ...mount.options].join(',')].join(':'),
      ];
  }
}

function networkArguments(spec: Specification): string[] {
  const network = spec.network;
  const flags: string[] = [];
  if (network.mode === 'bridge') {
    for (const name of network.networks) {
      const aliases = (network.aliases[name] ?? []).map((alias) => `alias=${alias}`);
      flags.push('--network', aliases.length === 0 ? name : `${name}:${aliases.join(',')}`);
    }
  } else {
    flags.push('--network', network.mode === 'host' ? 'host' : 'none');
  }
  for (const server of network.dns) flags.push('--dns', server);
  for (const domain of network.dnsSearch) flags.push('--dns-search', domain);
  for (const option of network.dnsOptions) flags.push('--dns-option', option);
  for (const host of network.extraHosts) flags.push('--add-host', host);
  if (!network.managesHosts) flags.push('--no-hosts');
  return flags;
}

function policyArguments(spec: Specification): string[] {
  const { name, retries } = spec.restartPolicy;
  const flags: string[] = [];
  if (name !== 'no') flags.push('--restart', name === 'on-failure' && retries > 0 ? `${name}:${retries}` : name);
  if (spec.autoRemove) flags.push('--rm');
  if (spec.stopSignal !== undefined) flags.push('--stop-signal', spec.stopSignal);
  if (spec.stopTimeout_s !== undefined) flags.push('--stop-timeout', String(spec.stopTimeout_s));
  if (spec.runLimit_s !== undefined) flags.push('--timeout', String(spec.runLimit_s));
  if (spec.logDriver !== undefined) flags.push('--log-driver', spec.logDriver);
  for (const [option, value] of Object.entries(spec.logOptions)) flags.push('--log-opt', `${option}=${value}`);
  return flags;
}

function resourceArguments(spec: Specification): string[] {
  const r = spec.resources;
  const numbers: [string, string | number | undefined][] = [
    ['--memory', r.memory_bytes === undefined ? undefined : `${r.memory_bytes}b`],
    [
      '--memory-swap',
      r.memorySwap_bytes === undefined || r.memorySwap_bytes < 0 ? r.memorySwap_bytes : `${r.memorySwap_bytes}b`,
    ],
    ['--memory-reservation', r.memoryReservation_bytes === undefined ? undefined : `${r.memoryReservation_bytes}b`],
    ['--memory-swappiness', r.memorySwappiness],
    ['--cpu-shares', r.cpuShares],
    ['--cpu-quota', r.cpuQuota_us],
    ['--cpu-period', r.cpuPeriod_us],
    ['--cpuset-cpus', r.cpusetCpus],
    ['--cpuset-mems', r.cpusetMems],
    // Podman shows 0 where no limit was asked for or the limit was lifted; both are the same to the kernel.
    ['--pids-limit', r.pidsLimit],
    ['--oom-score-adj', r.oomScoreAdj],
    ['--cgroup-parent', r.cgroupParent],
    [
      '--shm-size',
      spec.shmSize_bytes === undefined || spec.namespaces.ipc === 'host' ? undefined : `${spec.shmSize_bytes}b`,
    ],
  ];
  const flags = numbers.flatMap(([flag, value]) => (value === undefined ? [] : [flag, String(value)]));
  for (const limit of spec.ulimits) flags.push('--ulimit', `${limit.name}=${limit.soft}:${limit.hard}`);
  return flags;
}

function securityArguments(spec: Specification): string[] {
  const flags: string[] = [];
  if (spec.privileged) flags.push('--privileged');
  for (const capability of spec.capabilities.add) flags.push('--cap-add', capability);
  for (const capability of spec.capabilities.drop) flags.push('--cap-drop', capability);
  if (spec.readOnlyRootfs) flags.push('--read-only');
  for (const option of spec.securityOptions) flags.push('--security-opt', option);
  for (const device of spec.devices)
    flags.push('--device', `${device.source}:${device.destination}:${device.permissions}`);
  for (const [name, value] of Object.entries(spec.sysctls)) flags.push('--sysctl', `${name}=${value}`);
  const { pid, ipc, uts, user, cgroup } = spec.namespaces;
  if (pid === 'host') flags.push('--pid', 'host');
  if (ipc !== '' && ipc !== 'shareable') flags.push('--ipc', ipc);
  if (uts === 'host' && spec.network.mode !== 'host') flags.push('--uts', 'host');
  if (user !== '') flags.push('--userns', user);
  if (cgroup === 'host' && !spec.privileged) flags.push('--cgroupns', 'host');
  return flags;
}

function processArguments(spec: Specification): string[] {
  return [
    ...(spec.init ? ['--init'] : []),
    ...(spec.tty ? ['--tty'] : []),
    ...(spec.openStdin ? ['--interactive'] : []),
    ...(spec.umask === undefined ? [] : ['--umask', spec.umask]),
    ...(spec.timezone === undefined ? [] : ['--tz', spec.timezone]),
  ];
}

function healthArguments(spec: Specification): string[] {
  const health = spec.healthCheck;
  if (health === undefined) return [];
  const [form, ...words] = health.test;
  if (form === 'NONE') return ['--no-healthcheck'];
  const command =
    form === 'CMD-SHELL' ? `CMD-SHELL ${words.join(' ')}` : JSON.stringify(form === 'CMD' ? words : health.test);
  return [
    '--health-cmd',
    command,
    '--health-interval',
    health.interval_ms === 0 ? 'disable' : `${health.interval_ms}ms`,
    ...(health.timeout_ms === 0 ? [] : ['--health-timeout', `${health.timeout_ms}ms`]),
    ...(health.retries === 0 ? [] : ['--health-retries', String(health.retries)]),
    '--health-start-period',
    `${health.startPeriod_ms}ms`,
    '--health-on-failure',
    health.onFailure,
  ];
}
