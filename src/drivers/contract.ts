import type { Specification } from './specification.ts';

/**
 * What an engine's driver must do. A driver lives in its own folder and is named in registry.ts; nothing else knows
 * engines by name. Methods are idempotent where the saga may repeat them after a crash (freeze, thaw, resume, remove,
 * create with the same handle key), and throw UmsError with a code of telemetry/error-codes.ts.
 *
 * A service on its way through a driver:
 *
 *   source        running ──freeze──▶ frozen ──checkpoint──▶ frozen ──remove──▶ absent
 *                    ▲                  │ thaw                 │ thaw
 *                    └──────────────────┴──────────────────────┘
 *   destination   absent ──create──▶ created ──restore──▶ restored ──resume──▶ running
 *                    ▲                 │ remove             │ remove             │ remove (until the commit is final)
 *                    └─────────────────┴────────────────────┴────────────────────┘
 *
 * `checkpoint` never lets the service run again: it is frozen before and after, without one instruction in between.
 * `restored` means: every process exists with its memory and descriptors, and none has executed an instruction.
 */
export type EngineName = Specification['engine'];

export type ServiceState = 'absent' | 'created' | 'running' | 'frozen' | 'restored' | 'stopped';

export interface EngineFingerprint {
  engine: EngineName;
  /** False when the engine cannot be used here; `problem` then says why and `mend` how to get it. */
  available: boolean;
  problem?: string;
  mend?: string;
  version: string;
  /** Name and version of the OCI runtime below it. */
  runtime: string;
}

export interface ServiceSummary {
  engine: EngineName;
  /** The engine's own id. */
  id: string;
  name: string;
  state: ServiceState;
  image: string;
  /** Process id of the service's first process on this host, 0 when it does not run. */
  pid: number;
  ports: string[];
  created_at: string;
}

/** A directory that moves with the service. `id` pairs the source's with the destination's. */
export interface Tree {
  /**
   * 'rootfs' (all of a bundle's root), 'upper' (an overlay's writable layer), 'shm', 'volume:NAME', 'bind:/path', or
   * 'files:/path' (a directory of the container, seen from within).
   * At the source every bound directory is listed; it travels only where its mount's `transfer` is 'copy', and the
   * destination's list has it only then.
   */
  id: string;
  /** Absolute path on this host. */
  path: string;
  /** overlay-upper: carries whiteouts and overlay attributes that must be kept as they are. */
  kind: 'plain' | 'overlay-upper';
  /** False where the agent lives in the service's own container, which confines both already; true otherwise. */
  confined?: boolean;
}

/** What the driver knows of a service here. `handle` is opaque to everyone else, versioned JSON text, and survives restarts. */
export interface ServiceDescription {
  summary: ServiceSummary;
  specification: Specification;
  handle: string;
  trees: Tree[];
  /** Things about it that cannot be kept, in words for the user: shown by `ums check`. */
  losses: string[];
}

export interface CreatedService {
  handle: string;
  id: string;
  trees: Tree[];
}

export interface CheckpointRequest {
  /** Empty directory, in memory, for CRIU's images (all but the memory pages when there is a page server). */
  imagesDir: string;
  /** Directory for logs. */
  workDir: string;
  /** Where CRIU sends memory pages, on this host; without one they go to imagesDir like everything else. */
  pageServer?: { address: string; port: number };
  /**
   * A lazy dump: anonymous memory is only listed in the images, for a lazy restore; whoever moves it reads it from the
   * frozen processes. The call returns as soon as the images are complete, while CRIU still lets go of the processes:
   * `thaw`, `discard` and `remove` wait for that. Not with a page server.
   */
  lazy?: true;
  /** Milliseconds until the dump counts as failed. */
  timeout_ms: number;
  /** Called when CRIU has been told to begin. */
  onBegun?: () => void;
}

export interface AfterCheckpoint {
  /** CRIU has let go of the processes. */
  ended: Promise<void>;
  /**
   * Rejects if the images turned out not to be what the service is. A driver may look at what takes long, and hardly ever
   * differs, while the destination restores already.
   */
  holds: Promise<void>;
}

export interface RestoreRequest {
  imagesDir: string;
  workDir: string;
  /** The images are those of a lazy dump, and a lazy-pages daemon listens in workDir (before `restore` is called). */
  lazy?: true;
  timeout_ms: number;
}

export interface DriverOptions {
  /** Where the agent keeps what must survive it. */
  stateDir: string;
  /** Where it keeps what must not survive a boot. */
  runDir: string;
  /** Where the output of bundles goes, if it was a pipe: without it, into a file in the bundle. */
  output?: ServiceOutput;
}

/** Files that a service's standard output and standard error are written to. */
export interface ServiceOutput {
  out: string;
  err: string;
}

export interface RemoveOptions {
  volumes: boolean;
  /** Names of volumes that stay in any case. */
  keep?: readonly string[];
  /** Names of its volumes as they were described: a removal that was cut short may have left them without the container. */
  described?: readonly string[];
  /** The system that it has moved to: an owner that stays behind is told, for people to see. */
  goneTo?: string;
}

export interface Driver {
  readonly engine: EngineName;
  /**
   * Why the memory of its services can travel only as CRIU's images, whatever their hosts can; undefined where it need not.
   * `checkpoint` and `restore` then refuse a lazy request with UMS_E_TECHNIQUE.
   */
  readonly whyNotLazy?: string;
  fingerprint(): Promise<EngineFingerprint>;
  list(): Promise<ServiceSummary[]>;
  /** `reference` is a name, an id or an id's unambiguous beginning. Throws UMS_E_SERVICE_UNKNOWN / _AMBIGUOUS. */
  describe(reference: string): Promise<ServiceDescription>;
  /** State of the service behind a handle, asked of the engine and the kernel, never remembered. */
  state(handle: string): Promise<ServiceState>;
  /** Host process ids of every process of the service. */
  processes(handle: string): Promise<number[]>;
  /** An address at which this host reaches a TCP port of the service; undefined when it has none that is reachable. */
  address(handle: string): Promise<string | undefined>;

  /** Findings about recreating it here (name or port taken, missing mounts, devices, runtime…); creates nothing. */
  canCreate(specification: Specification): Promise<Finding[]>;
  /** True when the image is here, so that it need not travel. */
  hasImage(specification: Specification): Promise<boolean>;
  /** Digests of the layers of all images here, so that they need not travel. */
  imageLayers(): Promise<string[]>;
  /**
   * Streams the image's archive into `sink` (source) or out of `source` (destination), where the format allows it
   * without layers that the destination knows.
   */
  exportImage(
    specification: Specification,
    sink: NodeJS.WritableStream,
    signal: AbortSignal,
    known?: readonly string[],
  ): Promise<void>;
  importImage(specification: Specification, source: NodeJS.ReadableStream, signal: AbortSignal): Promise<void>;
  /** Creates it without starting. `key` (the migration's id) makes it idempotent and lets `findCreated` find it after a crash. */
  create(specification: Specification, key: string): Promise<CreatedService>;
  /** What `create` made for this key, if anything: asked of the engine. */
  findCreated(specification: Specification, key: string): Promise<CreatedService | undefined>;

  /** Whatever made it, and would make another one when it goes, is held from now on, until `thaw` or its return. */
  freeze(handle: string): Promise<void>;
  thaw(handle: string): Promise<void>;
  /**
   * Does what a checkpoint with the same request can do while the service still runs. To be called shortly before the
   * freeze; once more when that took its time, so that the service is seen as it is now. Undone by `thaw`, `discard` and
   * `remove`, and by the end of the agent. `checkpoint` works without it too.
   */
  prepareCheckpoint(handle: string, request: CheckpointRequest): Promise<void>;
  /** The descriptors.json that a checkpoint would write now, for `prepareRestore` at the other side. */
  descriptors(handle: string): Promise<string | undefined>;
  checkpoint(handle: string, request: CheckpointRequest): Promise<void>;
  /** What goes on after the last checkpoint has returned, of which the commit must wait for `holds`. */
  afterCheckpoint(handle: string): AfterCheckpoint;
  /**
   * Does what a restore with the same request can do before its images are there, so that it need not be done while the
   * service stands still. Of the images only descriptors.json must be in imagesDir (without it nothing is prepared), and
   * the directory must stay the same one. No files of the service may be arriving until this has resolved. The state
   * stays 'created'; `remove` undoes it. Idempotent, also after a restart of the agent; `restore` works without it too.
   * To be called shortly before the freeze: the engine's commands on this service, or on all, wait from now on until it
   * is restored or removed, or has waited for some seconds.
   */
  prepareRestore(handle: string, request: RestoreRequest): Promise<void>;
  restore(handle: string, request: RestoreRequest): Promise<void>;
  resume(handle: string): Promise<void>;
  /**
   * Lets a running service use this share (0…1) of the processor time it used when it was first throttled, so that it
   * dirties less memory; undefined gives it back what it had, also after a restart of the agent. False when the control
   * group has no control over processor time: then nothing was changed. It also ends with `checkpoint`, `thaw` and `remove`.
   */
  throttle(handle: string, share: number | undefined): Promise<boolean>;
  /**
   * Removes the service and all that `create` made for it; a frozen one without it running again. Absent already is
   * success. With `volumes` its named volumes go too, except those that another container uses and those to keep.
   */
  remove(handle: string, options: RemoveOptions): Promise<void>;
  /**
   * Ends a source copy for good, a frozen one without it running again, but keeps its container and files, stopped. No
   * restart policy may bring it back by itself. One that is stopped stays so; absent already is success. Idempotent.
   */
  discard(handle: string, options?: Pick<RemoveOptions, 'goneTo'>): Promise<void>;
  /**
   * The service is the one copy from now on, also while its memory still follows: whoever starts it again, by a restart
   * policy too, starts it from its files and restores nothing. Idempotent.
   */
  adopt(handle: string): Promise<void>;
  /** Called once when the migration is final at the destination: drops marks that only migrations need. */
  settle(handle: string): Promise<void>;
  /** Starts a stopped service from its files (after its host went down and its memory is gone). */
  startFresh(handle: string): Promise<void>;
  /**
   * Ends what there is of a service whose memory can never be whole again, frozen or not, and starts it from its files. Its
   * restart policy stays.
   */
  restartFresh(handle: string): Promise<void>;
  /** The user's own control messages, when no migration holds them. */
  stop(handle: string): Promise<void>;
  start(handle: string): Promise<void>;
}

export type Severity = 'error' | 'warning' | 'info';

/** One line of a pre-flight check. */
export interface Finding {
  severity: Severity;
  /** Stable, like `criu.version` or `port.taken`. */
  id: string;
  what: string;
  why: string;
  mend: string;
}
