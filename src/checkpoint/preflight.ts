import { readdir, readFile, readlink } from 'node:fs/promises';
import type { Finding } from '#src/drivers/contract.ts';

/**
 * What can be seen of running processes that CRIU will refuse, without stopping them. It reads /proc only, so it can
 * miss what appears later; the dump itself has the last word.
 */

/** Descriptors of one process that are looked at; a process may have a million. */
const MAX_DESCRIPTORS = 65_536;
const CAP_SYS_RESOURCE = 24;

/** Kinds of anonymous inodes that CRIU 4 dumps. Everything else of the kind is unknown to it. */
const DUMPABLE_ANON = new Set(['eventfd', 'eventpoll', 'inotify', 'fanotify', 'signalfd', 'timerfd', 'pidfd']);
const REFUSED_ANON: Record<string, string> = {
  io_uring: 'io_uring',
  userfaultfd: 'userfaultfd',
  perf_event: 'performance events',
  'bpf-prog': 'a BPF program',
  'bpf-link': 'a BPF link',
  'kvm-vm': 'a virtual machine of KVM',
  'kvm-vcpu': 'a virtual processor of KVM',
  'seccomp notify': 'seccomp notifications',
};
/** Character devices that CRIU opens anew by their path, or knows. */
const KNOWN_DEVICES = /^\/dev\/(?:null|zero|full|random|urandom|tty|console|ptmx|pts\/\d+|net\/tun|rtc\d*|autofs)$/;

/** Files of /proc/net in which the sockets of one namespace stand, with the column of the inode and what CRIU does. */
const SOCKET_TABLES: readonly { file: string; column: number; refused: string | undefined }[] = [
  { file: 'tcp', column: 9, refused: undefined },
  { file: 'tcp6', column: 9, refused: undefined },
  { file: 'udp', column: 9, refused: undefined },
  { file: 'udp6', column: 9, refused: undefined },
  { file: 'udplite', column: 9, refused: undefined },
  { file: 'unix', column: 6, refused: undefined },
  { file: 'netlink', column: 9, refused: undefined },
  { file: 'packet', column: 8, refused: undefined },
  { file: 'raw', column: 9, refused: undefined },
  { file: 'raw6', column: 9, refused: undefined },
  { file: 'icmp', column: 9, refused: 'an ICMP socket' },
  { file: 'icmp6', column: 9, refused: 'an ICMP socket' },
  { file: 'ptype', column: -1, refused: undefined },
];

export interface ProcessView {
  pid: number;
  /** Where its descriptors lead, as readlink says. */
  descriptors: readonly string[];
  maps: string;
  status: string;
  /** Inodes of the sockets of its network namespace that CRIU knows how to dump; undefined when not looked up. */
  knownSockets: ReadonlySet<string> | undefined;
  /** Inodes of sockets it is known to refuse, with their kind. */
  refusedSockets: ReadonlyMap<string, string>;
  /** `mnt:[…]` and so on of the service's first process and of this one. */
  namespaces: Record<string, string>;
  /** Its System V objects are those of a namespace that CRIU is in itself, and does not dump. */
  sharesIpc: boolean;
  /** CRIU has CAP_SYS_RESOURCE here, as root usually does. */
  mayReadLimits: boolean;
  firstNamespaces: Record<string, string>;
}

function isGone(error: unknown): boolean {
  return (
    error instanceof Error &&
    'code' in error &&
    (error.code === 'ENOENT' || error.code === 'ESRCH' || error.code === 'EACCES' || error.code === 'EINVAL')
  );
}

async function unlessGone<T>(body: Promise<T>, otherwise: T): Promise<T> {
  try {
    return await body;
  } catch (error) {
    if (isGone(error)) return otherwise;
    throw error;
  }
}

/** Looks at every process of the running service, the first one first. */
export async function checkProcesses(pids: readonly number[]): Promise<Finding[]> {
  const findings = new Map<string, Finding>();
  const sockets = new Map<string, { known: Set<string>; refused: Map<string, string> }>();
  const [first] = pids;
  if (first === undefined) return [];
  const firstNamespaces = await namespacesOf(first);
  const depth = depthOf(await unlessGone(readFile(`/proc/${first}/status`, 'utf8'), ''));
  const own = await namespacesOf(process.pid);
  const mayReadLimits = hasCapability(await readFile('/proc/self/status', 'utf8'), CAP_SYS_RESOURCE);
  for (const pid of pids) {
    const namespaces = await namespacesOf(pid);
    const network = namespaces['net'] ?? '';
    let table = sockets.get(network);
    if (table === undefined) {
      table = await socketsOf(pid);
      sockets.set(network, table);
    }
    const status = await unlessGone(readFile(`/proc/${pid}/status`, 'utf8'), '');
    // Another container of the service has a namespace beside the first one's, a nested one has it below.
    const beside = depthOf(status) === depth ? namespaces['pid'] : undefined;
    const view: ProcessView = {
      pid,
      descriptors: await descriptorsOf(pid),
      maps: await unlessGone(readFile(`/proc/${pid}/maps`, 'utf8'), ''),
      status,
      knownSockets: table.known,
      refusedSockets: table.refused,
      namespaces,
      sharesIpc: namespaces['ipc'] !== undefined && namespaces['ipc'] === own['ipc'],
      mayReadLimits,
      firstNamespaces: beside === undefined ? firstNamespaces : { ...firstNamespaces, pid: beside },
    };
    const strays = await filesOfOtherMounts(pid);
    for (const stray of strays) findings.set(`descriptor.mount ${stray}`, ofOtherMount(stray));
    // The same reason in many processes is one finding.
    for (const finding of judgeProcess(view)) findings.set(`${finding.id} ${finding.why}`, finding);
  }
  return [...findings.values()];
}

/** In how many process id namespaces it has a number (proc(5): NSpid). */
function depthOf(status: string): number {
  return /^NSpid:\s*(.*)$/m.exec(status)?.[1]?.split(/\s+/).length ?? 0;
}

async function descriptorsOf(pid: number): Promise<string[]> {
  const names = await unlessGone(readdir(`/proc/${pid}/fd`), []);
  const targets: string[] = [];
  for (const name of names.slice(0, MAX_DESCRIPTORS)) {
    const target = await unlessGone(readlink(`/proc/${pid}/fd/${name}`), '');
    if (target !== '') targets.push(target);
  }
  return targets;
}

/**
 * Files behind standard input and output that lie on a mount the container does not have, as after `runc run -d … >FILE`:
 * CRIU cannot name them (proc(5): mnt_id of fdinfo, the first field of mountinfo).
 */
async function filesOfOtherMounts(pid: number): Promise<string[]> {
  const mounts = await unlessGone(readFile(`/proc/${pid}/mountinfo`, 'utf8'), '');
  const known = new Set(mounts.split('\n').map((line) => line.split(' ')[0]));
  const strays: string[] = [];
  for (const fd of ['0', '1', '2']) {
    const target = await unlessGone(readlink(`/proc/${pid}/fd/${fd}`), '');
    if (!target.startsWith('/') || target.startsWith('/dev/')) continue;
    const mount = /^mnt_id:\s+(\d+)$/m.exec(await unlessGone(readFile(`/proc/${pid}/fdinfo/${fd}`, 'utf8'), ''))?.[1];
    if (mounts !== '' && mount !== undefined && !known.has(mount)) strays.push(target);
  }
  return strays;
}

function ofOtherMount(path: string): Finding {
  return {
    severity: 'error',
    id: 'descriptor.mount',
    what: `The service writes to or reads from ${path}, a file of its host.`,
    why: 'CRIU can dump a file only on a mount that the container has.',
    mend: 'Start the service with its output in a pipe, in /dev/null or in a file of its own (docs/drivers.md).',
  };
}

async function namespacesOf(pid: number): Promise<Record<string, string>> {
  const result: Record<string, string> = {};
  for (const kind of ['mnt', 'net', 'pid', 'ipc', 'uts', 'user']) {
    const target = await unlessGone(readlink(`/proc/${pid}/ns/${kind}`), '');
    if (target !== '') result[kind] = target;
  }
  return result;
}

async function socketsOf(pid: number): Promise<{ known: Set<string>; refused: Map<string, string> }> {
  const known = new Set<string>();
  const refused = new Map<string, string>();
  for (const table of SOCKET_TABLES) {
    if (table.column < 0) continue;
    const text = await unlessGone(readFile(`/proc/${pid}/net/${table.file}`, 'utf8'), '');
    for (const inode of inodesOf(text, table.column)) {
      if (table.refused === undefined) known.add(inode);
      else refused.set(inode, table.refused);
    }
  }
  return { known, refused };
}

/** `status` is /proc/PID/status. */
export function hasCapability(status: string, bit: number): boolean {
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? '0';
  return (BigInt(`0x${effective}`) >> BigInt(bit)) % 2n === 1n;
}

export function inodesOf(text: string, column: number): string[] {
  return text
    .split('\n')
    .slice(1)
    .map((line) => line.trim().split(/\s+/)[column] ?? '')
    .filter((inode) => /^[1-9]\d*$/.test(inode));
}

/** The findings about one process; a pure function of what was seen. */
export function judgeProcess(view: ProcessView): Finding[] {
  return [...judgeDescriptors(view), ...judgeMappings(view), ...judgeStatus(view), ...judgeNamespaces(view)];
}

function judgeDescriptors(view: ProcessView): Finding[] {
  const findings: Finding[] = [];
  for (const target of view.descriptors) {
    const anon = /^anon_inode:\[?([^\]]+)\]?$/.exec(target)?.[1];
    if (anon !== undefined && !DUMPABLE_ANON.has(anon)) {
      findings.push(
        refusal('descriptor.unsupported', view.pid, REFUSED_ANON[anon] ?? anon, 'Configure the program not to use it.'),
      );
    }
    if (target.startsWith('/dev/') && !KNOWN_DEVICES.test(target) && !target.startsWith('/dev/shm/')) {
      findings.push(
        refusal('descriptor.device', view.pid, `the device ${target}`, 'Stop using the device before the migration.'),
      );
    }
    const inode = /^socket:\[(\d+)\]$/.exec(target)?.[1];
    if (inode === undefined) continue;
    const kind = view.refusedSockets.get(inode);
    if (kind !== undefined) {
      findings.push(refusal('descriptor.socket', view.pid, kind, 'Close it before the migration.'));
    } else if (view.knownSockets !== undefined && !view.knownSockets.has(inode)) {
      findings.push(unknownSocket(view.pid));
    }
  }
  return findings;
}

/** A TCP socket that was made but is neither connected nor listening is in no table either, and CRIU can dump it. */
function unknownSocket(pid: number): Finding {
  return {
    severity: 'info',
    id: 'descriptor.socket.unknown',
    what: `Process ${pid} has a socket whose kind cannot be told from outside`,
    why: 'Sockets that are not in use yet look the same as those of protocols that CRIU cannot dump (vsock, SCTP).',
    mend: 'Nothing needs to be done unless the service uses such a protocol.',
  };
}

function judgeMappings(view: ProcessView): Finding[] {
  const findings: Finding[] = [];
  for (const line of view.maps.split('\n')) {
    if (view.sharesIpc && /\s\/SYSV[0-9a-f]{8}/.test(line)) {
      findings.push(
        refusal(
          'mapping.sysv',
          view.pid,
          'System V shared memory outside of a namespace of its own',
          'Have the program use POSIX or anonymous shared memory, or move its container by its engine.',
        ),
      );
    }
    if (line.includes('anon_inode:[io_uring]')) {
      findings.push(refusal('descriptor.unsupported', view.pid, 'io_uring', 'Configure the program not to use it.'));
    }
    const device = /\s(\/dev\/\S+)/.exec(line)?.[1];
    if (device !== undefined && !KNOWN_DEVICES.test(device) && !device.startsWith('/dev/shm/')) {
      findings.push(
        refusal('mapping.device', view.pid, `memory of the device ${device}`, 'Stop using the device first.'),
      );
    }
  }
  return findings;
}

function judgeStatus(view: ProcessView): Finding[] {
  const findings: Finding[] = [];
  const tracer = Number(/^TracerPid:\s*(\d+)$/m.exec(view.status)?.[1] ?? '0');
  if (tracer !== 0) {
    findings.push({
      severity: 'error',
      id: 'process.traced',
      what: `Process ${view.pid} is being traced by process ${tracer}`,
      why: 'CRIU has to trace it, and a process has one tracer at most.',
      mend: 'End the debugger or tracer.',
    });
  }
  const user = /^Uid:\s*(\d+)/m.exec(view.status)?.[1];
  if (user !== undefined && user !== '0' && !view.mayReadLimits) {
    findings.push({
      severity: 'error',
      id: 'criu.capability',
      what: `Processes of user ${user} cannot be dumped here`,
      why: 'This system withholds CAP_SYS_RESOURCE from root, and CRIU needs it to read the limits of another user’s process.',
      mend: 'Give the agent CAP_SYS_RESOURCE, or run the service as root inside its container.',
    });
  }
  const uninterruptible = /^State:\s*D/m.test(view.status);
  if (uninterruptible) {
    findings.push({
      severity: 'warning',
      id: 'process.uninterruptible',
      what: `Process ${view.pid} waits uninterruptibly`,
      why: 'Freezing waits until it comes back from the kernel.',
      mend: 'Usually it passes; if not, look at the storage or network file system that it waits for.',
    });
  }
  return findings;
}

function judgeNamespaces(view: ProcessView): Finding[] {
  const findings: Finding[] = [];
  // Nested mount, uts, ipc and network namespaces are dumped; a nested user or pid namespace is not.
  for (const kind of ['pid', 'user']) {
    const own = view.namespaces[kind];
    const first = view.firstNamespaces[kind];
    if (own === undefined || first === undefined || own === first) continue;
    findings.push(
      refusal(
        'process.namespace',
        view.pid,
        `a ${kind} namespace of its own inside the container`,
        'Nested containers and sandboxes cannot be moved.',
      ),
    );
  }
  return findings;
}

function refusal(id: string, pid: number, thing: string, mend: string): Finding {
  return {
    severity: 'error',
    id,
    what: `Process ${pid} uses ${thing}`,
    why: `CRIU cannot dump ${thing}.`,
    mend,
  };
}
