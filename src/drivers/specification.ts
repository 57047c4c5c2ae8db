import { z } from 'zod';

/**
 * The engine-neutral description of a service: enough to create an identical one elsewhere. It crosses the trust
 * boundary between systems, so every field is bounded. Version 1.
 */
const text = z.string().max(4096);
const shortText = z.string().max(512);
const absolutePath = z.string().max(4096).startsWith('/');
/** Containers of one service. */
const CONTAINERS_MAX = 100;

export const mountSchema = z.discriminatedUnion('kind', [
  /** Storage that the engine manages under a name; its content moves with the service. */
  z.object({
    kind: z.literal('volume'),
    name: shortText,
    destination: absolutePath,
    readOnly: z.boolean(),
    options: z.array(shortText).max(32),
    /** Named by the engine, not by a person: the destination's engine gives it a name of its own. */
    anonymous: z.boolean(),
    labels: z.record(text, z.string().max(65_536)),
    /** Neither a driver nor options for it: a directory of the host that the engine keeps. */
    plain: z.boolean().default(true),
    /** The destination has the same storage under the same name: it is mounted there and not copied. */
    shared: z.boolean().default(false),
  }),
  /** A path of the host. `transfer` says what the user chose: copy the content, or expect it to be there. */
  z.object({
    kind: z.literal('bind'),
    source: absolutePath,
    destination: absolutePath,
    readOnly: z.boolean(),
    options: z.array(shortText).max(32),
    transfer: z.enum(['copy', 'expect', 'undecided']),
  }),
  /** Memory; CRIU carries its content. */
  z.object({ kind: z.literal('tmpfs'), destination: absolutePath, options: z.array(shortText).max(32) }),
]);
export type Mount = z.infer<typeof mountSchema>;

export const portSchema = z.object({
  hostIp: z.string().max(64),
  hostPort: z.int().min(1).max(65_535),
  containerPort: z.int().min(1).max(65_535),
  protocol: z.enum(['tcp', 'udp', 'sctp']),
});
export type Port = z.infer<typeof portSchema>;

export const imageSchema = z.discriminatedUnion('kind', [
  /** An image of an engine, by the digest of its configuration (`sha256:…`), with the names it goes by. */
  z.object({
    kind: z.literal('image'),
    id: z.string().regex(/^sha256:[0-9a-f]{64}$/),
    names: z.array(text).max(64),
    size_bytes: z.int().min(0),
    /** Kubernetes only, where `id` is the digest of the manifest: that of the configuration. */
    configuration: z
      .string()
      .regex(/^sha256:[0-9a-f]{64}$/)
      .optional(),
    /** It cannot travel in this form: the destination must have it. */
    fixed: z.boolean().optional(),
  }),
  /** A root file system without an image (a runc bundle): all of it travels as a tree. */
  z.object({ kind: z.literal('rootfs') }),
]);
export type Image = z.infer<typeof imageSchema>;

export const restartPolicySchema = z.object({
  name: z.enum(['no', 'always', 'on-failure', 'unless-stopped']),
  retries: z.int().min(0).max(1_000_000),
});

export const resourcesSchema = z.object({
  memory_bytes: z.int().min(0).optional(),
  memorySwap_bytes: z.int().min(-1).optional(),
  memoryReservation_bytes: z.int().min(0).optional(),
  memorySwappiness: z.int().min(0).max(100).optional(),
  cpuShares: z.int().min(0).optional(),
  cpuQuota_us: z.int().min(-1).optional(),
  cpuPeriod_us: z.int().min(0).optional(),
  /** Billionths of a processor; a quota in one number. */
  cpus_nano: z.int().min(0).optional(),
  cpusetCpus: shortText.optional(),
  cpusetMems: shortText.optional(),
  oomScoreAdj: z.int().min(-1000).max(1000).optional(),
  cgroupParent: shortText.optional(),
  pidsLimit: z.int().min(-1).optional(),
});

export const healthCheckSchema = z.object({
  test: z.array(text).max(64),
  interval_ms: z.int().min(0),
  timeout_ms: z.int().min(0),
  retries: z.int().min(0).max(1000),
  startPeriod_ms: z.int().min(0),
  /** What the engine does when it turns unhealthy. */
  onFailure: z.enum(['none', 'kill', 'restart', 'stop']),
});

const knownEngineSchema = z.enum([
  'runc',
  'podman',
  'docker',
  'containerd',
  'kubernetes',
  'swarm',
  'nomad',
  'marathon',
  'init',
]);
/** Those of hosts, which a person can ask for. */
export const hostEngineSchema = knownEngineSchema.exclude(['init']);
/** An engine whose driver is not a part of ums has a name that no later one of ums can have. */
const outsideEngineSchema = z.templateLiteral(['x-', z.string().regex(/^[a-z0-9]{1,30}$/)]);
export const engineSchema = z.union([knownEngineSchema, outsideEngineSchema]);

/** A message of containerd's that is taken along as it is. */
const opaqueSchema = z.object({ type: shortText, base64: z.string().max(1024 * 1024) });

export const specificationSchema = z.object({
  version: z.literal(1),
  /** The engine it was described by; a destination with the same one recreates it without translation. */
  engine: engineSchema,
  name: z.string().regex(/^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}$/),
  image: imageSchema,
  entrypoint: z.array(text).max(256).optional(),
  command: z.array(z.string().max(131_072)).max(4096),
  env: z.array(z.string().max(131_072)).max(4096),
  workingDir: absolutePath,
  user: shortText,
  groups: z.array(shortText).max(256),
  hostname: shortText,
  domainName: shortText.optional(),
  labels: z.record(text, z.string().max(65_536)),
  annotations: z.record(text, z.string().max(65_536)),
  mounts: z.array(mountSchema).max(512),
  ports: z.array(portSchema).max(4096),
  network: z.object({
    mode: z.enum(['bridge', 'host', 'none', 'private']),
    networks: z.array(shortText).max(64),
    /** Names a person gave it in a network, by network. */
    aliases: z.record(shortText, z.array(shortText).max(64)),
    dns: z.array(shortText).max(16),
    dnsSearch: z.array(shortText).max(64),
    dnsOptions: z.array(shortText).max(64),
    extraHosts: z.array(text).max(256),
    /** The engine writes /etc/hosts. */
    managesHosts: z.boolean(),
  }),
  restartPolicy: restartPolicySchema,
  resources: resourcesSchema,
  ulimits: z.array(z.object({ name: shortText, soft: z.int().min(-1), hard: z.int().min(-1) })).max(64),
  capabilities: z.object({ add: z.array(shortText).max(64), drop: z.array(shortText).max(64) }),
  privileged: z.boolean(),
  readOnlyRootfs: z.boolean(),
  securityOptions: z.array(text).max(64),
  devices: z.array(z.object({ source: absolutePath, destination: absolutePath, permissions: shortText })).max(256),
  stopSignal: shortText.optional(),
  stopTimeout_s: z.int().min(0).max(1_000_000).optional(),
  init: z.boolean(),
  tty: z.boolean(),
  openStdin: z.boolean(),
  healthCheck: healthCheckSchema.optional(),
  shmSize_bytes: z.int().min(0).optional(),
  sysctls: z.record(shortText, text),
  logDriver: shortText.optional(),
  /** `path`, `max-size`, `tag`. */
  logOptions: z.record(shortText, text),
  /** The engine removes it when it ends. */
  autoRemove: z.boolean(),
  umask: shortText.optional(),
  timezone: shortText.optional(),
  /** Seconds after which the engine ends it; they count anew at the destination. */
  runLimit_s: z.int().min(0).optional(),
  exposedPorts: z.array(shortText).max(4096),
  namespaces: z.object({ pid: shortText, ipc: shortText, uts: shortText, user: shortText, cgroup: shortText }),
  /** runc only: the bundle's path, and its config.json to the byte (it is the specification there). */
  bundle: z.object({ path: absolutePath, configText: z.string().max(4 * 1024 * 1024) }).optional(),
  /** Kubernetes only: the pod's manifest without what its cluster added (it is the specification there). */
  pod: z
    .object({
      namespace: shortText,
      manifest: z.string().max(2 * 1024 * 1024),
      /** Of its other containers, where they are others than `image`. */
      images: z.array(imageSchema).max(CONTAINERS_MAX).optional(),
    })
    .optional(),
  /** How many containers it has, where it is not one: they share networks and volumes, and move as one. */
  containers: z.int().min(2).max(CONTAINERS_MAX).optional(),
  /** containerd only: the rest of the container's record, with its OCI configuration to the byte. */
  containerd: z
    .object({
      /** The image's name in the record, which says where it came from; it may mean another image by now. */
      image: text,
      snapshotter: shortText,
      spec: z.object({ type: shortText, text: z.string().max(4 * 1024 * 1024) }),
      runtime: shortText,
      options: opaqueSchema.optional(),
      extensions: z.record(shortText, opaqueSchema),
    })
    .optional(),
});
export type Specification = z.infer<typeof specificationSchema>;

/** What must be at a host so that the service can be made there. */
export function imagesOf({ image, pod }: Pick<Specification, 'image' | 'pod'>): Image[] {
  return [image, ...(pod?.images ?? [])];
}

/** The network of a service of which its engine says no more than this. */
export function bareNetwork(mode: Specification['network']['mode'], managesHosts = false): Specification['network'] {
  return {
    mode,
    networks: [],
    aliases: {},
    dns: [],
    dnsSearch: [],
    dnsOptions: [],
    extraHosts: [],
    managesHosts,
  };
}
