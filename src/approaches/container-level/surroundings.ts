import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { run } from '#src/telemetry/exec.ts';
import { UmsError } from '#src/telemetry/errors.ts';

/**
 * What runc and CRIU need around them, made in the capsule's own mount namespace: a whole /proc (CRIU sets what a service
 * had set of its own namespaces), the capsule's branch of the control groups, writable, and memory for what must not
 * survive. It all goes with the capsule.
 */
const CGROUP = '/sys/fs/cgroup';
/** Where the capsule's own processes go: a group with controllers to hand down may hold none itself. */
const OWN_GROUP = `${CGROUP}/capsule`;
const RUN = '/run';
const MOVES_MAX = 20;

export interface MountLine {
  point: string;
  type: string;
  options: string[];
  /** Path within the file system that is mounted. */
  root: string;
}

export function parseMounts(mountinfo: string): MountLine[] {
  return mountinfo.split('\n').flatMap((line) => {
    const [mount, origin] = line.split(' - ');
    const fields = mount?.split(' ') ?? [];
    const [type] = origin?.split(' ') ?? [];
    if (fields[4] === undefined || type === undefined) return [];
    return [{ point: fields[4], root: fields[3] ?? '', type, options: (fields[5] ?? '').split(',') }];
  });
}

/** The mount that is seen at a path: of several on the same point the last. */
function seenAt(mounts: readonly MountLine[], point: string): MountLine | undefined {
  return mounts.findLast((mount) => mount.point === point);
}

export async function prepareSurroundings(): Promise<void> {
  const mounts = parseMounts(readFileSync('/proc/self/mountinfo', 'utf8'));
  const covered = mounts.some((each) => each.point.startsWith('/proc/'));
  if (covered) await mount('proc', '/proc', 'nosuid,nodev,noexec', 'A whole /proc');
  const groups = seenAt(mounts, CGROUP);
  if (groups?.type !== 'cgroup2' || groups.root !== '/' || !groups.options.includes('rw')) {
    await mount('cgroup2', CGROUP, 'nosuid,nodev,noexec', 'The capsule’s control groups');
  }
  if (seenAt(mounts, RUN)?.type !== 'tmpfs') await putRunInMemory(mounts);
  makeRoomForGroups();
}

/** CRIU keeps what it knows of the kernel only there; checkpoints, too, are not for the disk. What lies there stays. */
async function putRunInMemory(mounts: readonly MountLine[]): Promise<void> {
  const fresh = mkdtempSync(join(tmpdir(), 'ums-run-'));
  await mount('tmpfs', fresh, 'nosuid,nodev,mode=755', RUN);
  for (const name of readdirSync(RUN)) {
    // An engine may have mounted a file of its own or secrets there: those are shown again, the rest is copied.
    const from = join(RUN, name);
    const to = join(fresh, name);
    const mounted = mounts.some((each) => each.point === from || each.point.startsWith(`${from}/`));
    if (!mounted) await run('cp', ['--archive', from, to]);
    else {
      if (lstatSync(from).isDirectory()) mkdirSync(to);
      else writeFileSync(to, '');
      await run('mount', ['--rbind', from, to]);
    }
  }
  await run('mount', ['--move', fresh, RUN]);
  rmdirSync(fresh);
}

async function mount(type: string, point: string, options: string, what: string): Promise<void> {
  try {
    await run('mount', ['-t', type, '-o', options, type, point]);
  } catch (cause) {
    throw new UmsError('UMS_E_PREREQUISITE', {
      message: `${what} cannot be mounted here: ${cause instanceof Error ? cause.message : String(cause)}`,
      fault: 'user',
      state: 'The service was not started.',
      mend: 'Give the capsule CAP_SYS_ADMIN and no AppArmor profile that forbids mounts; `ums capsule doctor` in it says how.',
      cause,
    });
  }
}

function makeRoomForGroups(): void {
  if (!existsSync(OWN_GROUP)) mkdirSync(OWN_GROUP);
  // A process may have come while the others went.
  for (let moves = 0; moves < MOVES_MAX; moves += 1) {
    const pids = readFileSync(join(CGROUP, 'cgroup.procs'), 'utf8')
      .split('\n')
      .filter((line) => line !== '' && line !== '0');
    if (pids.length === 0) break;
    for (const pid of pids) moveToOwnGroup(pid);
  }
  const controllers = readFileSync(join(CGROUP, 'cgroup.controllers'), 'utf8').trim().split(' ');
  for (const controller of controllers) if (controller !== '') handDown(controller);
}

function moveToOwnGroup(pid: string): void {
  try {
    writeFileSync(join(OWN_GROUP, 'cgroup.procs'), pid);
  } catch (error) {
    // It ended in the meantime.
    if (!(error instanceof Error && 'code' in error && error.code === 'ESRCH')) throw error;
  }
}

/** Without a controller the service has no limits and no throttling of its own; the capsule's hold for it all the same. */
function handDown(controller: string): void {
  try {
    writeFileSync(join(CGROUP, 'cgroup.subtree_control'), `+${controller}`);
  } catch (error) {
    if (!(error instanceof Error && 'code' in error)) throw error;
  }
}
