import { readFile, statfs } from 'node:fs/promises';
import { arch, freemem, platform, release } from 'node:os';
import { run } from '#src/telemetry/exec.ts';
import { toUmsError } from '#src/telemetry/errors.ts';
import { formatBytes } from '../format.ts';
import { type Check, missing, ok, warning } from './checks.ts';

/** Text of a file of the kernel; undefined when it is not there or may not be read. */
async function read(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch {
    // Not there is an answer here: the check that asked says what is missing.
    return undefined;
  }
}

export async function baseChecks(): Promise<Check[]> {
  const linux = platform() === 'linux';
  const major = Number(process.versions.node.split('.')[0]);
  const systemd = (await read('/proc/1/comm'))?.trim() === 'systemd';
  return [
    linux
      ? ok('base', 'base.linux', 'Linux', `${release()} on ${arch()}`)
      : missing('base', 'base.linux', 'Linux', platform(), 'ums moves Linux containers: run it on a Linux host.'),
    major >= 24
      ? ok('base', 'base.node', 'Node 24', process.version)
      : missing(
          'base',
          'base.node',
          'Node 24',
          process.version,
          'Run ums through its launcher ./ums, which fetches Node 24.',
        ),
    systemd
      ? ok('base', 'base.systemd', 'systemd (to keep the agent running)', 'process 1')
      : warning(
          'base',
          'base.systemd',
          'systemd (to keep the agent running)',
          'not process 1',
          'Start the agent with your own supervisor: ums agent run --help.',
        ),
  ];
}

export async function kernelChecks(): Promise<Check[]> {
  return Promise.all([cgroupCheck(), overlayCheck(), nftablesCheck(), pipeCheck(), memoryCheck()]);
}

async function cgroupCheck(): Promise<Check> {
  const what = 'cgroup v2 (to freeze a service)';
  const mounts = (await read('/proc/self/mounts')) ?? '';
  const where = mounts
    .split('\n')
    .map((line) => line.split(' '))
    .find((fields) => fields[2] === 'cgroup2')?.[1];
  if (where !== undefined) return ok('kernel', 'kernel.cgroup2', what, `mounted at ${where}`);
  const known = ((await read('/proc/filesystems')) ?? '').includes('cgroup2');
  return missing(
    'kernel',
    'kernel.cgroup2',
    what,
    known ? 'the kernel has it, it is not mounted' : 'the kernel does not have it',
    known
      ? 'mount -t cgroup2 none /sys/fs/cgroup/unified, or boot with systemd.unified_cgroup_hierarchy=1'
      : 'Use a kernel from 5.2 on.',
  );
}

async function overlayCheck(): Promise<Check> {
  const what = 'overlay file system (writable layers)';
  if (((await read('/proc/filesystems')) ?? '').includes('overlay'))
    return ok('kernel', 'kernel.overlay', what, 'known to the kernel');
  return missing('kernel', 'kernel.overlay', what, 'not loaded', 'modprobe overlay');
}

async function nftablesCheck(): Promise<Check> {
  const what = 'nftables (CRIU holds packets with it)';
  try {
    await run('nft', ['list', 'tables'], { timeout_ms: 5000 });
    return ok('kernel', 'kernel.nftables', what, 'nft works');
  } catch (thrown) {
    return warning(
      'kernel',
      'kernel.nftables',
      what,
      toUmsError(thrown).message,
      'apt-get install nftables; run as root.',
    );
  }
}

const PIPE_WANTED_BYTES = 16 * 1024 * 1024;

async function pipeCheck(): Promise<Check> {
  const what = 'pipe size limit (post-copy)';
  const size = Number((await read('/proc/sys/fs/pipe-max-size')) ?? '0');
  if (size >= PIPE_WANTED_BYTES) return ok('kernel', 'kernel.pipes', what, formatBytes(size));
  return warning(
    'kernel',
    'kernel.pipes',
    what,
    `${formatBytes(size)} of ${formatBytes(PIPE_WANTED_BYTES)}`,
    `sysctl -w fs.pipe-max-size=${PIPE_WANTED_BYTES}`,
  );
}

async function memoryCheck(): Promise<Check> {
  const meminfo = (await read('/proc/meminfo')) ?? '';
  const available = Number(/^MemAvailable:\s+(\d+) kB/m.exec(meminfo)?.[1] ?? freemem() / 1024) * 1024;
  return {
    id: 'kernel.memory',
    group: 'kernel',
    what: 'memory that a service could move into',
    status: 'info',
    seen: formatBytes(available),
    mend: '',
  };
}

const CAPABILITIES: readonly { bit: number; name: string; why: string; needed: boolean }[] = [
  { bit: 21, name: 'CAP_SYS_ADMIN', why: 'dump and restore, mounts', needed: true },
  { bit: 19, name: 'CAP_SYS_PTRACE', why: 'read the memory of a service', needed: true },
  { bit: 12, name: 'CAP_NET_ADMIN', why: 'sockets, network of a service', needed: true },
  { bit: 24, name: 'CAP_SYS_RESOURCE', why: 'negative oom scores, big pipes', needed: false },
  { bit: 40, name: 'CAP_CHECKPOINT_RESTORE', why: 'process ids at restore', needed: false },
];

export async function rightsChecks(): Promise<Check[]> {
  const status = (await read('/proc/self/status')) ?? '';
  const mask = BigInt(`0x${/^CapEff:\s+([0-9a-f]+)$/m.exec(status)?.[1] ?? '0'}`);
  const checks = CAPABILITIES.map(({ bit, name, why, needed }) => {
    const what = `${name} (${why})`;
    const id = `rights.${name.toLowerCase().slice(4)}`;
    if ((mask >> BigInt(bit)) % 2n === 1n) return ok('rights', id, what, 'held');
    const mend = 'Run as root (sudo ums doctor); in a container, add the capability.';
    return needed ? missing('rights', id, what, 'not held', mend) : warning('rights', id, what, 'not held', mend);
  });
  const lacking = checks.filter((check) => check.status === 'missing').map((check) => check.what.split(' ')[0]);
  const all = 'the rights that moving a service takes';
  checks.push(
    lacking.length === 0
      ? ok('rights', 'rights.admin', all, 'held')
      : missing('rights', 'rights.admin', all, `without ${lacking.join(', ')}`, 'Run as root (sudo ums doctor).'),
  );
  return checks;
}

export async function fileChecks(env: Readonly<Record<string, string | undefined>>): Promise<Check[]> {
  const places = [
    ['files.state', 'the journal', env['UMS_STATE_DIR'] ?? '/var/lib/ums', '/var/lib'],
    ['files.run', 'checkpoint images, in memory', env['UMS_RUN_DIR'] ?? '/run/ums', '/run'],
  ] as const;
  return Promise.all(
    places.map(async ([id, what, wanted, parent]): Promise<Check> => {
      for (const path of [wanted, parent]) {
        const room = await roomAt(path);
        if (room !== undefined)
          return {
            id,
            group: 'files',
            what: `room for ${what}`,
            status: 'info',
            seen: `${formatBytes(room)} free at ${path}`,
            mend: '',
          };
      }
      return warning(
        'files',
        id,
        `room for ${what}`,
        `${parent} cannot be looked at`,
        `Make ${wanted} a directory of root's.`,
      );
    }),
  );
}

async function roomAt(path: string): Promise<number | undefined> {
  try {
    const stats = await statfs(path);
    return stats.bavail * stats.bsize;
  } catch {
    // The caller looks at the parent instead.
    return undefined;
  }
}
