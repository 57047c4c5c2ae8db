import type { RunAs, Settings } from './settings.ts';
import type { Account } from './users.ts';

/**
 * The runtime's configuration of a nested service. It shares the capsule's network, so that its ports are the capsule's
 * ports; everything else is its own. Of capabilities it gets what engines give to any container, as far as the capsule
 * has them itself.
 */
const DEFAULT_CAPABILITIES = [
  'CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD AUDIT_WRITE',
  'SETFCAP',
].flatMap((row) => row.split(' '));

/** As numbered by the kernel (include/uapi/linux/capability.h). */
const NUMBERED = [
  'CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE',
  'NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN',
  'SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE',
  'MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE',
].flatMap((row) => row.split(' '));

/** Names of the capabilities in a mask as /proc/PID/status writes it. */
export function capabilitiesOf(mask: string): Set<string> {
  const bits = BigInt(`0x${mask}`);
  return new Set(NUMBERED.filter((_, at) => (bits & (1n << BigInt(at))) !== 0n));
}

export interface BundleRequest {
  run: RunAs;
  account: Account;
  asked: Settings;
  hostname: string;
  /** What the capsule itself may do. */
  capabilities: ReadonlySet<string>;
  /** The control group of the service, beneath the capsule's own. */
  cgroup: string;
  annotations: Record<string, string>;
}

export function bundleConfig(request: BundleRequest): unknown {
  const { run, account, asked } = request;
  const caps = nestedCapabilities(asked, request.capabilities);
  const effective = account.uid === 0 ? caps : [];
  const env = run.env.some((entry) => entry.startsWith('HOME=')) ? run.env : [...run.env, `HOME=${account.home}`];
  return {
    ociVersion: '1.0.2',
    process: {
      terminal: false,
      user: { uid: account.uid, gid: account.gid, additionalGids: account.additionalGids },
      args: run.args,
      env,
      cwd: run.workingDir,
      capabilities: { bounding: caps, effective, permitted: effective },
    },
    root: { path: 'rootfs', readonly: asked.readOnlyRootfs ?? false },
    hostname: request.hostname,
    mounts: [...MOUNTS, ...bindsOf(asked)],
    annotations: request.annotations,
    linux: {
      cgroupsPath: request.cgroup,
      namespaces: ['pid', 'ipc', 'uts', 'mount', 'cgroup'].map((type) => ({ type })),
      sysctl: asked.sysctls ?? {},
      resources: { devices: [{ allow: false, access: 'rwm' }] },
      maskedPaths: MASKED,
      readonlyPaths: READ_ONLY,
    },
  };
}

const bare = (name: string): string => name.toUpperCase().replace(/^CAP_/, '');

function nestedCapabilities({ capabilities }: Settings, own: ReadonlySet<string>): string[] {
  const dropped = new Set((capabilities?.drop ?? []).map(bare));
  const wanted = new Set(dropped.has('ALL') ? [] : DEFAULT_CAPABILITIES.filter((name) => !dropped.has(name)));
  for (const name of (capabilities?.add ?? []).map(bare)) {
    for (const each of name === 'ALL' ? own : [name]) wanted.add(each);
  }
  return [...wanted].filter((name) => own.has(name)).map((name) => `CAP_${name}`);
}

function bindsOf({ mounts }: Settings): unknown[] {
  return (mounts ?? []).map(({ source, destination, readOnly }) => ({
    destination,
    source,
    type: 'bind',
    options: ['rbind', 'rprivate', readOnly ? 'ro' : 'rw'],
  }));
}

const mount = (destination: string, type: string, source: string, options: string): unknown => ({
  destination,
  type,
  source,
  options: options.split(','),
});

const MOUNTS = [
  mount('/proc', 'proc', 'proc', 'nosuid,noexec,nodev'),
  mount('/dev', 'tmpfs', 'tmpfs', 'nosuid,strictatime,mode=755,size=65536k'),
  mount('/dev/pts', 'devpts', 'devpts', 'nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5'),
  mount('/dev/shm', 'tmpfs', 'shm', 'nosuid,noexec,nodev,mode=1777,size=65536k'),
  mount('/dev/mqueue', 'mqueue', 'mqueue', 'nosuid,noexec,nodev'),
  mount('/sys', 'sysfs', 'sysfs', 'nosuid,noexec,nodev,ro'),
  mount('/sys/fs/cgroup', 'cgroup', 'cgroup', 'nosuid,noexec,nodev,relatime,ro'),
];

/** As engines hide them from any container. */
const MASKED = [
  ...'acpi asound kcore keys latency_stats timer_list timer_stats sched_debug scsi'
    .split(' ')
    .map((name) => `/proc/${name}`),
  '/sys/firmware',
  '/sys/devices/virtual/powercap',
];
const READ_ONLY = 'bus fs irq sys sysrq-trigger'.split(' ').map((name) => `/proc/${name}`);
