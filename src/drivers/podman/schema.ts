import { z } from 'zod';
import { nullableList, nullableRecord } from '../oci/answers.ts';

/** What ums reads of Podman's answers about containers, volumes and images; everything else is left alone. */
const mountSchema = z.object({
  Type: z.string(),
  Name: z.string().optional(),
  Source: z.string().default(''),
  Destination: z.string(),
  Driver: z.string().default(''),
  Options: nullableList(z.string()),
  RW: z.boolean(),
  Propagation: z.string().default(''),
});
export type InspectMount = z.infer<typeof mountSchema>;

const networkSchema = z.object({ IPAddress: z.string().default(''), Aliases: nullableList(z.string()) });

const healthSchema = z.object({
  Test: nullableList(z.string()),
  Interval: z.number().default(0),
  Timeout: z.number().default(0),
  Retries: z.number().default(0),
  StartPeriod: z.number().default(0),
});

const bindingSchema = z.object({ HostIp: z.string().default(''), HostPort: z.string().default('') });

export const inspectSchema = z.object({
  Id: z.string(),
  Name: z.string(),
  Created: z.string(),
  Image: z.string(),
  ImageName: z.string().default(''),
  Rootfs: z.string().default(''),
  Pod: z.string().default(''),
  IsInfra: z.boolean().default(false),
  StaticDir: z.string(),
  OCIConfigPath: z.string().default(''),
  OCIRuntime: z.string(),
  Driver: z.string().default(''),
  State: z.object({
    Status: z.string(),
    Pid: z.number(),
    ConmonPid: z.number().default(0),
  }),
  GraphDriver: z.object({ Name: z.string(), Data: nullableRecord(z.string()) }),
  Mounts: nullableList(mountSchema),
  NetworkSettings: z.object({ IPAddress: z.string().default(''), Networks: nullableRecord(networkSchema) }),
  Config: z.object({
    Hostname: z.string().default(''),
    User: z.string().default(''),
    Tty: z.boolean(),
    OpenStdin: z.boolean(),
    Env: nullableList(z.string()),
    Cmd: nullableList(z.string()),
    Entrypoint: z.union([z.array(z.string()), z.string()]).nullish(),
    WorkingDir: z.string().default('/'),
    Labels: nullableRecord(z.string()),
    Annotations: nullableRecord(z.string()),
    StopSignal: z.union([z.string(), z.number()]).nullish(),
    StopTimeout: z.number().nullish(),
    Healthcheck: healthSchema.nullish(),
    HealthcheckOnFailureAction: z.string().nullish(),
    Umask: z.string().nullish(),
    Timeout: z.number().nullish(),
    Timezone: z.string().nullish(),
    SystemdMode: z.boolean().default(false),
    Secrets: nullableList(z.object({ Name: z.string() })),
    ExposedPorts: nullableRecord(z.unknown()),
    CreateCommand: nullableList(z.string()),
  }),
  HostConfig: z.object({
    CgroupManager: z.string().default(''),
    CgroupMode: z.string().default(''),
    CgroupParent: z.string().default(''),
    Cgroups: z.string().default('default'),
    LogConfig: z.object({
      Type: z.string(),
      Path: z.string().default(''),
      Tag: z.string().default(''),
      Size: z.string().default('0B'),
    }),
    NetworkMode: z.string(),
    PortBindings: nullableRecord(nullableList(bindingSchema)),
    RestartPolicy: z.object({ Name: z.string(), MaximumRetryCount: z.number() }),
    AutoRemove: z.boolean(),
    Binds: nullableList(z.string()),
    CapAdd: nullableList(z.string()),
    CapDrop: nullableList(z.string()),
    Dns: nullableList(z.string()),
    DnsOptions: nullableList(z.string()),
    DnsSearch: nullableList(z.string()),
    ExtraHosts: nullableList(z.string()),
    GroupAdd: nullableList(z.string()),
    IpcMode: z.string().default('shareable'),
    PidMode: z.string().default('private'),
    UTSMode: z.string().default('private'),
    UsernsMode: z.string().default(''),
    Privileged: z.boolean(),
    ReadonlyRootfs: z.boolean(),
    SecurityOpt: nullableList(z.string()),
    Tmpfs: nullableRecord(z.string()),
    ShmSize: z.number(),
    OomScoreAdj: z.number(),
    CpuShares: z.number(),
    CpuPeriod: z.number(),
    CpuQuota: z.number(),
    CpusetCpus: z.string(),
    CpusetMems: z.string(),
    Memory: z.number(),
    MemoryReservation: z.number(),
    MemorySwap: z.number(),
    MemorySwappiness: z.number(),
    PidsLimit: z.number().nullish(),
    Devices: nullableList(
      z.object({ PathOnHost: z.string(), PathInContainer: z.string(), CgroupPermissions: z.string() }),
    ),
    Ulimits: nullableList(z.object({ Name: z.string(), Soft: z.number(), Hard: z.number() })),
  }),
  UseImageHosts: z.boolean().default(false),
});
export type Inspect = z.infer<typeof inspectSchema>;

export const listedSchema = z.array(
  z.object({
    Id: z.string(),
    Names: nullableList(z.string()),
    Image: z.string(),
    State: z.string(),
    Pid: z.number().default(0),
    Created: z.string(),
    IsInfra: z.boolean().default(false),
    Ports: nullableList(
      z.object({
        host_ip: z.string().default(''),
        host_port: z.number(),
        container_port: z.number(),
        protocol: z.string(),
        range: z.number().default(1),
      }),
    ),
  }),
);

export const volumeSchema = z.object({
  Name: z.string(),
  Driver: z.string(),
  Mountpoint: z.string(),
  Labels: nullableRecord(z.string()),
  Options: nullableRecord(z.string()),
  Anonymous: z.boolean().default(false),
});
export type Volume = z.infer<typeof volumeSchema>;

export const imageSchema = z.object({
  Id: z.string(),
  RepoTags: nullableList(z.string()),
  Size: z.number(),
  ManifestType: z.string().default(''),
  RootFS: z.object({ Layers: nullableList(z.string()) }).nullish(),
});

/**
 * The part of a running container's config.json that `podman inspect` does not tell: sysctls, and devices whose number
 * Podman does not find again below /dev.
 */
export const ociConfigSchema = z.object({
  linux: z
    .object({
      sysctl: nullableRecord(z.string()),
      devices: nullableList(z.object({ path: z.string().startsWith('/') })),
    })
    .optional(),
});
