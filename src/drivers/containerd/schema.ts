import { z } from 'zod';
import { nullableList, nullableRecord } from '../oci/answers.ts';

/** What is read of containerd's answers, and of the OCI configurations and images that it keeps. */
const text = z.string().max(65_536);
const bytes = z.custom<Uint8Array>((value) => value instanceof Uint8Array);
const time = z.object({ seconds: z.number(), nanos: z.number() }).nullish();

export const anySchema = z.object({ type_url: text, value: bytes });
export type Any = z.infer<typeof anySchema>;

export const containerSchema = z.object({
  id: z.string().min(1).max(128),
  labels: nullableRecord(text),
  image: text,
  runtime: z.object({ name: text, options: anySchema.nullish() }).nullish(),
  spec: anySchema.nullish(),
  snapshotter: text,
  snapshot_key: text,
  created_at: time,
  extensions: nullableRecord(anySchema),
  sandbox: text,
});
export type Container = z.infer<typeof containerSchema>;
export const containerAnswerSchema = z.object({ container: containerSchema });
export const containersSchema = z.object({ containers: nullableList(containerSchema) });

export const taskSchema = z.object({
  id: text,
  pid: z.number(),
  status: z.enum(['UNKNOWN', 'CREATED', 'RUNNING', 'STOPPED', 'PAUSED', 'PAUSING']),
  stdin: text,
  stdout: text,
  stderr: text,
  terminal: z.boolean(),
});
export type Task = z.infer<typeof taskSchema>;
export const taskAnswerSchema = z.object({ process: taskSchema });
export const tasksSchema = z.object({ tasks: nullableList(taskSchema) });

export const mountSchema = z.object({ type: text, source: text, target: text, options: nullableList(text) });
export type SnapshotMount = z.infer<typeof mountSchema>;
export const mountsSchema = z.object({ mounts: nullableList(mountSchema) });
export const snapshotSchema = z.object({ info: z.object({ name: text, parent: text, labels: nullableRecord(text) }) });

export const descriptorSchema = z.object({ media_type: text, digest: text, size: z.number() });
export const imageSchema = z.object({ name: text, labels: nullableRecord(text), target: descriptorSchema });
export type Image = z.infer<typeof imageSchema>;
export const imageAnswerSchema = z.object({ image: imageSchema });
export const imagesSchema = z.object({ images: nullableList(imageSchema) });
export const contentInfoSchema = z.object({ info: z.object({ digest: text, size: z.number() }) });
export const readSchema = z.object({ data: bytes });

export const runcOptionsSchema = z.object({
  no_new_keyring: z.boolean(),
  binary_name: text,
  root: text,
  systemd_cgroup: z.boolean(),
});
export type RuncOptions = z.infer<typeof runcOptionsSchema>;

/** Digests of blobs, as `sha256:…`. */
const digest = z.string().regex(/^sha256:[0-9a-f]{64}$/);
const blob = z.object({ mediaType: z.string().default(''), digest, size: z.int().min(0) });
const platform = z.object({ architecture: z.string(), os: z.string() });
export const indexSchema = z.object({ manifests: z.array(blob.extend({ platform: platform.optional() })).max(1024) });
export const manifestSchema = z.object({ config: blob, layers: z.array(blob).max(1024) });
export const imageConfigSchema = z.object({ rootfs: z.object({ diff_ids: z.array(digest).max(1024) }) });

const words = nullableList(z.string());
const number = z.number().nullish();
/** What ums reads of the OCI configuration in a container's record; the text itself travels to the byte. */
export const configSchema = z.object({
  root: z.object({ path: z.string(), readonly: z.boolean().default(false) }).nullish(),
  hostname: z.string().default(''),
  domainname: z.string().default(''),
  process: z.object({
    terminal: z.boolean().default(false),
    args: words,
    env: words,
    cwd: z.string().default('/'),
    user: z.object({ uid: z.int().default(0), gid: z.int().default(0), additionalGids: nullableList(z.int()) }),
    noNewPrivileges: z.boolean().default(false),
    capabilities: z.object({ bounding: words }).nullish(),
    rlimits: nullableList(z.object({ type: z.string(), soft: z.number(), hard: z.number() })),
    apparmorProfile: z.string().default(''),
    selinuxLabel: z.string().default(''),
    oomScoreAdj: number,
  }),
  mounts: nullableList(
    z.object({
      destination: z.string(),
      type: z.string().default(''),
      source: z.string().default(''),
      options: words,
    }),
  ),
  annotations: nullableRecord(z.string()),
  hooks: z.record(z.string(), z.array(z.unknown()).nullish()).nullish(),
  linux: z.object({
    namespaces: nullableList(z.object({ type: z.string(), path: z.string().default('') })),
    uidMappings: nullableList(z.unknown()),
    sysctl: nullableRecord(z.string()),
    devices: nullableList(z.object({ path: z.string() })),
    cgroupsPath: z.string().default(''),
    seccomp: z.unknown().optional(),
    maskedPaths: words,
    resources: z
      .object({
        memory: z.object({ limit: number, swap: number, reservation: number, swappiness: number }).nullish(),
        cpu: z
          .object({ shares: number, quota: number, period: number, cpus: text.nullish(), mems: text.nullish() })
          .nullish(),
        pids: z.object({ limit: number }).nullish(),
      })
      .nullish(),
  }),
});
export type Config = z.infer<typeof configSchema>;
