import { UmsError } from '#src/telemetry/errors.ts';
import { bareNetwork, type Image, type Mount, type Specification } from '../specification.ts';
import type { Stdio } from './handle.ts';
import { specOf } from './hold.ts';
import { type Any, type Config, configSchema, type Container, type Task } from './schema.ts';

/** What `ctr` and every other client of containerd's own library give a container unless they are told otherwise. */
const DEFAULT_CAPABILITIES = [
  'CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP',
  'NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE',
].flatMap((row) => row.split(' ').map((name) => `CAP_${name}`));
const DEFAULT_CPU_SHARES = 1024;
/** Labels of containerd's restart monitor. */
const RESTART = 'containerd.io/restart.';
const STOP_SIGNAL = 'io.containerd.image.config.stop-signal';
/** Files that say something of the host, and that every host has; a service that mounts them wants those of its host. */
const HOST_FILES = new Set(['/etc/hosts', '/etc/hostname', '/etc/resolv.conf', '/etc/localtime', '/etc/timezone']);

export function textOf(spec: Any): string {
  return Buffer.from(spec.value).toString('utf8');
}

export function parseConfig(text: string, id: string): Config {
  try {
    return configSchema.parse(JSON.parse(text));
  } catch (error) {
    throw new UmsError('UMS_E_SPECIFICATION', {
      message: `The record of ${id} holds no OCI configuration for Linux`,
      fault: 'user',
      detail: error instanceof Error ? error.message.slice(0, 2000) : String(error),
      cause: error,
    });
  }
}

export function stdioOf(task: Task | undefined): Stdio {
  if (task === undefined || (task.stdout === '' && task.stderr === '')) return { kind: 'null' };
  if (/^[a-z]+:/.test(task.stdout)) return { kind: 'uri', uri: task.stdout };
  return { kind: 'fifo', stdin: task.stdin !== '' };
}

export function bindsOf(config: Config): Extract<Mount, { kind: 'bind' }>[] {
  return config.mounts
    .filter((mount) => mount.type === 'bind' || mount.options.includes('bind') || mount.options.includes('rbind'))
    .map((mount) => ({
      kind: 'bind',
      source: mount.source,
      destination: mount.destination,
      readOnly: mount.options.includes('ro'),
      options: mount.options.slice(0, 32),
      transfer: isHostFile(mount.source, mount.options) ? 'expect' : 'undecided',
    }));
}

function isHostFile(source: string, options: readonly string[]): boolean {
  return HOST_FILES.has(source) && options.includes('ro');
}

/** A container's record → what it is. Its configuration says everything, and travels; the rest is for other readers. */
export function specificationOf(container: Container, image: Image, stdio: Stdio): Specification {
  const spec = specOf(container);
  const configText = textOf(spec);
  const config = parseConfig(configText, container.id);
  const { process, linux } = config;
  const own = (type: string): boolean => linux.namespaces.some((namespace) => namespace.type === type);
  const shm = config.mounts.find(({ destination }) => destination === '/dev/shm');
  const bounding = process.capabilities?.bounding ?? [];
  const options = container.runtime?.options ?? undefined;
  return {
    version: 1,
    engine: 'containerd',
    name: container.id,
    image,
    command: process.args,
    env: process.env,
    workingDir: process.cwd,
    user: `${process.user.uid}:${process.user.gid}`,
    groups: process.user.additionalGids.map(String),
    hostname: config.hostname,
    ...(config.domainname === '' ? {} : { domainName: config.domainname }),
    labels: container.labels,
    annotations: config.annotations,
    mounts: [...bindsOf(config), ...tmpfsOf(config)],
    ports: [],
    exposedPorts: [],
    network: bareNetwork(own('network') ? 'private' : 'host'),
    restartPolicy: restartPolicyOf(container.labels),
    resources: resourcesOf(config),
    ulimits: process.rlimits.map(({ type, soft, hard }) => ({
      name: type.replace(/^RLIMIT_/, '').toLowerCase(),
      soft: limitOf(soft),
      hard: limitOf(hard),
    })),
    capabilities: {
      add: bounding.filter((name) => !DEFAULT_CAPABILITIES.includes(name)),
      drop: DEFAULT_CAPABILITIES.filter((name) => !bounding.includes(name)),
    },
    privileged: bounding.includes('CAP_SYS_ADMIN') && linux.maskedPaths.length === 0 && !hasSeccomp(config),
    readOnlyRootfs: config.root?.readonly === true,
    securityOptions: [
      ...(process.noNewPrivileges ? ['no-new-privileges'] : []),
      ...(hasSeccomp(config) ? [] : ['seccomp=unconfined']),
      ...(process.apparmorProfile === '' ? [] : [`apparmor=${process.apparmorProfile}`]),
    ],
    devices: linux.devices.map(({ path }) => ({ source: path, destination: path, permissions: 'rwm' })),
    ...(container.labels[STOP_SIGNAL] === undefined ? {} : { stopSignal: container.labels[STOP_SIGNAL] }),
    init: false,
    tty: process.terminal,
    openStdin: stdio.kind === 'fifo' && stdio.stdin,
    ...(shm === undefined ? {} : sizeOf(shm.options)),
    sysctls: linux.sysctl,
    logDriver: stdio.kind,
    logOptions: stdio.kind === 'uri' ? { uri: stdio.uri } : {},
    autoRemove: false,
    namespaces: {
      pid: own('pid') ? 'private' : 'host',
      ipc: own('ipc') ? 'private' : 'host',
      uts: own('uts') ? 'private' : 'host',
      user: own('user') ? 'private' : '',
      cgroup: own('cgroup') ? 'private' : 'host',
    },
    containerd: {
      image: container.image,
      snapshotter: container.snapshotter,
      spec: { type: spec.type_url, text: configText },
      runtime: container.runtime?.name ?? '',
      ...(options === undefined ? {} : { options: { type: options.type_url, base64: base64(options.value) } }),
      extensions: Object.fromEntries(
        Object.entries(container.extensions).map(([name, { type_url, value }]) => [
          name,
          { type: type_url, base64: base64(value) },
        ]),
      ),
    },
  };
}

function base64(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('base64');
}

function hasSeccomp({ linux }: Config): boolean {
  return linux.seccomp !== undefined && linux.seccomp !== null;
}

function tmpfsOf(config: Config): Mount[] {
  return config.mounts
    .filter(({ type, destination }) => type === 'tmpfs' && destination !== '/dev' && destination !== '/dev/shm')
    .map(({ destination, options }) => ({ kind: 'tmpfs', destination, options: options.slice(0, 32) }));
}

/** RLIM_INFINITY is no number that JSON keeps. */
function limitOf(value: number): number {
  return value > Number.MAX_SAFE_INTEGER ? -1 : value;
}

function sizeOf(options: readonly string[]): { shmSize_bytes?: number } {
  const [, digits, unit = ''] =
    options.map((option) => /^size=(\d+)([kmg]?)$/i.exec(option)).find((each) => each !== null) ?? [];
  if (digits === undefined) return {};
  const factors: Record<string, number> = { '': 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30 };
  return { shmSize_bytes: Number(digits) * (factors[unit.toLowerCase()] ?? 1) };
}

function restartPolicyOf(labels: Record<string, string>): Specification['restartPolicy'] {
  if (labels[`${RESTART}status`] !== 'running') return { name: 'no', retries: 0 };
  const [name, retries = '0'] = (labels[`${RESTART}policy`] ?? 'always').split(':');
  if (name === 'on-failure' || name === 'unless-stopped') return { name, retries: Number(retries) || 0 };
  return name === 'no' ? { name: 'no', retries: 0 } : { name: 'always', retries: 0 };
}

export function isRestartLabel(label: string): boolean {
  return label.startsWith(RESTART);
}

export const RESTART_STATUS = `${RESTART}status`;

function resourcesOf({ linux, process }: Config): Specification['resources'] {
  const { memory, cpu, pids } = linux.resources ?? {};
  const told = {
    memory_bytes: positive(memory?.limit),
    memorySwap_bytes: memory?.swap ?? undefined,
    memoryReservation_bytes: positive(memory?.reservation),
    memorySwappiness: memory?.swappiness ?? undefined,
    cpuShares: cpu?.shares === DEFAULT_CPU_SHARES ? undefined : positive(cpu?.shares),
    cpuQuota_us: positive(cpu?.quota),
    cpuPeriod_us: positive(cpu?.period),
    cpusetCpus: cpu?.cpus === '' ? undefined : (cpu?.cpus ?? undefined),
    cpusetMems: cpu?.mems === '' ? undefined : (cpu?.mems ?? undefined),
    pidsLimit: positive(pids?.limit),
    oomScoreAdj: process.oomScoreAdj ?? undefined,
  };
  return Object.fromEntries(Object.entries(told).filter(([, value]) => value !== undefined));
}

function positive(value: number | null | undefined): number | undefined {
  return value === null || value === undefined || value <= 0 ? undefined : value;
}
