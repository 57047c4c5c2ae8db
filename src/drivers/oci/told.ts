import type { Mount, Port, Specification } from '../specification.ts';

/** Podman tells of a container in Docker's words: what both say alike, in no engine's words. */
export interface ToldHost {
  NetworkMode: string;
  Dns: string[];
  DnsSearch: string[];
  DnsOptions: string[];
  ExtraHosts: string[];
  Memory: number;
  MemorySwap: number;
  MemoryReservation: number;
  CpuShares: number;
  CpuQuota: number;
  CpuPeriod: number;
  CpusetCpus: string;
  CpusetMems: string;
  OomScoreAdj: number;
  CgroupParent: string;
  PidsLimit?: number | null | undefined;
}

export function tmpfsOf(tmpfs: Record<string, string>): Mount[] {
  return Object.entries(tmpfs).map(([destination, options]) => ({
    kind: 'tmpfs',
    destination,
    options: options.split(',').filter((option) => option !== ''),
  }));
}

export function portsOf(bindings: Record<string, { HostIp: string; HostPort: string }[]>): Port[] {
  return Object.entries(bindings).flatMap(([name, list]) => {
    const [port, protocol] = name.split('/');
    if (protocol !== 'tcp' && protocol !== 'udp' && protocol !== 'sctp') return [];
    return list.map((binding) => ({
      hostIp: binding.HostIp === '0.0.0.0' ? '' : binding.HostIp,
      hostPort: Number(binding.HostPort),
      containerPort: Number(port),
      protocol,
    }));
  });
}

/** Engines add aliases of their own (`own`); only what a person gave is kept. */
export function networkOf(
  host: ToldHost,
  connected: Record<string, { Aliases: string[] }>,
  own: ReadonlySet<string>,
  managesHosts: boolean,
): Specification['network'] {
  const mode = host.NetworkMode === 'host' ? 'host' : host.NetworkMode === 'none' ? 'none' : 'bridge';
  const networks = mode === 'bridge' ? Object.keys(connected) : [];
  const aliases: Record<string, string[]> = {};
  for (const name of networks) {
    const given = (connected[name]?.Aliases ?? []).filter((alias) => !own.has(alias));
    if (given.length > 0) aliases[name] = given;
  }
  return {
    mode,
    networks,
    aliases,
    dns: host.Dns,
    dnsSearch: host.DnsSearch,
    dnsOptions: host.DnsOptions,
    extraHosts: host.ExtraHosts,
    managesHosts,
  };
}

export function restartPolicyOf(policy: { Name: string; MaximumRetryCount: number }): Specification['restartPolicy'] {
  const retries = policy.MaximumRetryCount;
  switch (policy.Name) {
    case 'always':
    case 'on-failure':
    case 'unless-stopped':
      return { name: policy.Name, retries };
    default:
      return { name: 'no', retries: 0 };
  }
}

/** Limits of which both engines show 0 or nothing where none was asked for. */
export function limitsOf(host: ToldHost): Specification['resources'] {
  return {
    ...(host.Memory > 0 ? { memory_bytes: host.Memory } : {}),
    ...(host.MemorySwap === 0 ? {} : { memorySwap_bytes: host.MemorySwap }),
    ...(host.MemoryReservation > 0 ? { memoryReservation_bytes: host.MemoryReservation } : {}),
    ...(host.CpuShares > 0 ? { cpuShares: host.CpuShares } : {}),
    ...(host.CpuQuota === 0 ? {} : { cpuQuota_us: host.CpuQuota }),
    ...(host.CpuPeriod > 0 ? { cpuPeriod_us: host.CpuPeriod } : {}),
    ...(host.CpusetCpus === '' ? {} : { cpusetCpus: host.CpusetCpus }),
    ...(host.CpusetMems === '' ? {} : { cpusetMems: host.CpusetMems }),
    ...(host.OomScoreAdj === 0 ? {} : { oomScoreAdj: host.OomScoreAdj }),
    ...(host.CgroupParent === '' ? {} : { cgroupParent: host.CgroupParent }),
    ...(host.PidsLimit === null || host.PidsLimit === undefined ? {} : { pidsLimit: host.PidsLimit }),
  };
}
