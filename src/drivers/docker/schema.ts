import { z } from 'zod';
import { nullableList, nullableRecord } from '../oci/answers.ts';

/** What ums reads of Docker's answers; everything else is left alone. */
const numberOr0 = z
  .number()
  .nullish()
  .transform((value) => value ?? 0);
const textOrEmpty = z
  .string()
  .nullish()
  .transform((value) => value ?? '');
const flag = z
  .boolean()
  .nullish()
  .transform((value) => value ?? false);

const mountSchema = z.object({
  Type: z.string(),
  Name: z.string().optional(),
  Source: textOrEmpty,
  Destination: z.string(),
  Driver: textOrEmpty,
  Mode: textOrEmpty,
  RW: z.boolean(),
  Propagation: textOrEmpty,
});
export type InspectMount = z.infer<typeof mountSchema>;

const healthSchema = z.object({
  Test: nullableList(z.string()),
  Interval: numberOr0,
  Timeout: numberOr0,
  Retries: numberOr0,
  StartPeriod: numberOr0,
});

const endpointSchema = z.object({
  IPAddress: textOrEmpty,
  Aliases: nullableList(z.string()),
  IPAMConfig: z.object({ IPv4Address: textOrEmpty, IPv6Address: textOrEmpty }).nullish(),
  Links: nullableList(z.string()),
});

const bindingSchema = z.object({ HostIp: textOrEmpty, HostPort: textOrEmpty });

export const inspectSchema = z.object({
  Id: z.string().regex(/^[0-9a-f]{64}$/),
  Name: z.string().startsWith('/'),
  Created: z.string(),
  Image: z.string(),
  HostnamePath: textOrEmpty,
  Driver: textOrEmpty,
  State: z.object({ Status: z.string(), Pid: z.number() }),
  GraphDriver: z.object({ Name: z.string(), Data: nullableRecord(z.string()) }),
  Mounts: nullableList(mountSchema),
  NetworkSettings: z.object({
    IPAddress: textOrEmpty,
    SandboxKey: textOrEmpty,
    Networks: nullableRecord(endpointSchema),
  }),
  Config: z.object({
    Hostname: textOrEmpty,
    Domainname: textOrEmpty,
    User: textOrEmpty,
    Tty: z.boolean(),
    OpenStdin: z.boolean(),
    StdinOnce: flag,
    Env: nullableList(z.string()),
    Cmd: nullableList(z.string()),
    Entrypoint: nullableList(z.string()),
    Image: textOrEmpty,
    WorkingDir: textOrEmpty,
    Labels: nullableRecord(z.string()),
    ExposedPorts: nullableRecord(z.unknown()),
    Healthcheck: healthSchema.nullish(),
    StopSignal: z.string().nullish(),
    StopTimeout: z.number().nullish(),
  }),
  HostConfig: z.object({
    Annotations: nullableRecord(z.string()),
    AutoRemove: flag,
    BlkioWeight: numberOr0,
    CapAdd: nullableList(z.string()),
    CapDrop: nullableList(z.string()),
    CgroupParent: textOrEmpty,
    CgroupnsMode: textOrEmpty,
    CpuPeriod: numberOr0,
    CpuQuota: numberOr0,
    CpuShares: numberOr0,
    CpusetCpus: textOrEmpty,
    CpusetMems: textOrEmpty,
    DeviceCgroupRules: nullableList(z.string()),
    DeviceRequests: nullableList(z.unknown()),
    Devices: nullableList(
      z.object({ PathOnHost: z.string(), PathInContainer: z.string(), CgroupPermissions: z.string() }),
    ),
    Dns: nullableList(z.string()),
    DnsOptions: nullableList(z.string()),
    DnsSearch: nullableList(z.string()),
    ExtraHosts: nullableList(z.string()),
    GroupAdd: nullableList(z.string()),
    Init: flag,
    IpcMode: textOrEmpty,
    Links: nullableList(z.string()),
    LogConfig: z.object({ Type: z.string(), Config: nullableRecord(z.string()) }),
    Memory: numberOr0,
    MemoryReservation: numberOr0,
    MemorySwap: numberOr0,
    MemorySwappiness: z.number().nullish(),
    /** What `--mount` was given; of most of it `Mounts` of the container tells as well. */
    Mounts: nullableList(
      z.object({
        Type: z.string(),
        Target: z.string(),
        TmpfsOptions: z.object({ SizeBytes: numberOr0, Mode: numberOr0 }).nullish(),
        VolumeOptions: z.object({ Subpath: textOrEmpty }).nullish(),
      }),
    ),
    NanoCpus: numberOr0,
    NetworkMode: z.string(),
    OomKillDisable: flag,
    OomScoreAdj: numberOr0,
    PidMode: textOrEmpty,
    PidsLimit: z.number().nullish(),
    PortBindings: nullableRecord(nullableList(bindingSchema)),
    Privileged: flag,
    PublishAllPorts: flag,
    ReadonlyRootfs: flag,
    RestartPolicy: z.object({ Name: textOrEmpty, MaximumRetryCount: numberOr0 }),
    Runtime: textOrEmpty,
    SecurityOpt: nullableList(z.string()),
    ShmSize: numberOr0,
    StorageOpt: nullableRecord(z.string()),
    Sysctls: nullableRecord(z.string()),
    Tmpfs: nullableRecord(z.string()),
    Ulimits: nullableList(z.object({ Name: z.string(), Soft: z.number(), Hard: z.number() })),
    UTSMode: textOrEmpty,
    UsernsMode: textOrEmpty,
  }),
});
export type Inspect = z.infer<typeof inspectSchema>;

export const listedSchema = z
  .array(
    z.object({
      Id: z.string(),
      Names: nullableList(z.string()),
      Image: z.string(),
      State: z.string(),
      Created: z.number(),
      Labels: nullableRecord(z.string()),
      Ports: nullableList(
        z.object({
          IP: textOrEmpty,
          PublicPort: z.number().optional(),
          PrivatePort: z.number(),
          Type: z.string(),
        }),
      ),
    }),
  )
  .max(10_000);

export const volumeSchema = z.object({
  Name: z.string(),
  Driver: z.string(),
  Mountpoint: z.string(),
  Labels: nullableRecord(z.string()),
  Options: nullableRecord(z.string()),
});
export type Volume = z.infer<typeof volumeSchema>;

export const imageSchema = z.object({
  Id: z.string(),
  RepoTags: nullableList(z.string()),
  Size: z.number(),
  RootFS: z.object({ Layers: nullableList(z.string()) }),
});
export type Image = z.infer<typeof imageSchema>;

export const infoSchema = z.object({
  ServerVersion: z.string(),
  DockerRootDir: z.string().startsWith('/'),
  Driver: z.string(),
  Runtimes: z.record(z.string(), z.object({ path: textOrEmpty })),
  DefaultRuntime: textOrEmpty,
  /** `name=userns`, `name=rootless` and the like. */
  SecurityOptions: nullableList(z.string()),
});
