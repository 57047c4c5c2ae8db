import { readFile } from 'node:fs/promises';
import { criuFailure } from '#src/checkpoint/errors.ts';
import type { CheckpointRequest, RestoreRequest } from '#src/drivers/contract.ts';
import { parseCgroups, poll, readIfThere } from '#src/drivers/oci/cgroup.ts';
import { runDetached } from '#src/drivers/oci/child.ts';
import { commandLines } from '#src/drivers/oci/command-lines.ts';
import { logOf } from '#src/drivers/oci/dump.ts';
import { requireProgram } from '#src/drivers/oci/runtime.ts';
import { toUmsError, UmsError } from '#src/telemetry/errors.ts';
import { DEVICES, groupOf, rootfsOf } from './cli.ts';

const AT_WORK_LIMIT_MS = 120_000;
/** In both directions. Processes are in their control group because CRIU is started there; it need not know of any. */
const COMMON = ['--manage-cgroups=ignore', '--tcp-close', '--file-locks', '--verbosity=3'];

/** These words tell by its command line which box a CRIU works on. */
const dumpsFrom = (name: string) => `--freeze-cgroup=${groupOf(name).directory}`;
const restoresInto = (name: string) => `--root=${rootfsOf(name)}`;

/** Dumps the frozen box around its first process; CRIU leaves it frozen, and it runs no instruction in between. */
export async function dump(name: string, pid: number, request: CheckpointRequest): Promise<void> {
  const { imagesDir, workDir, pageServer } = request;
  const args = [
    'dump',
    `--tree=${pid}`,
    `--images-dir=${imagesDir}`,
    `--work-dir=${workDir}`,
    '--log-file=dump.log',
    '--leave-running',
    dumpsFrom(name),
    // Connections are closed at the destination, so no packet has to be kept from them.
    '--network-lock=skip',
    ...COMMON,
    // Mounts of the host in the box: CRIU is told by which name they will be known to the restore.
    ...DEVICES.flatMap((device) => ['--external', `mnt[/dev/${device}]:minibox-${device}`]),
    ...(pageServer === undefined
      ? []
      : ['--page-server', `--address=${pageServer.address}`, `--port=${pageServer.port}`]),
  ];
  await callCriu('UMS_E_DUMP', [await requireProgram('criu'), ...args], {}, request);
}

/**
 * A start of the box's whose last step is CRIU's. CRIU wants a root that is a mount, which is made in a mount namespace
 * that ends with it. The processes inherit its control group; the hook of the restore area takes CRIU out of it and freezes
 * it before one of them runs.
 */
const IN_BOX = 'echo 0 >"$1/cgroup.procs"; mount --bind "$2" "$2"; shift 2; exec "$@"';

export async function restore(name: string, settings: string, request: RestoreRequest): Promise<void> {
  const { imagesDir, workDir } = request;
  const args = [
    'restore',
    '--restore-detached',
    `--images-dir=${imagesDir}`,
    `--work-dir=${workDir}`,
    '--log-file=restore.log',
    restoresInto(name),
    ...COMMON,
    ...DEVICES.flatMap((device) => ['--external', `mnt[minibox-${device}]:/dev/${device}`]),
  ];
  const within = ['--mount', 'sh', '-ec', IN_BOX, 'sh', groupOf(name).directory, rootfsOf(name)];
  const words = [await requireProgram('unshare'), ...within, await requireProgram('criu'), ...args];
  await callCriu('UMS_E_RESTORE', words, { CRIU_CONFIG_FILE: settings }, request);
}

/** CRIU must undo what it has done to processes, so it is never killed; only the waiting for it has a limit. */
async function callCriu(
  code: 'UMS_E_DUMP' | 'UMS_E_RESTORE',
  [command = '', ...args]: readonly string[],
  env: Record<string, string>,
  request: CheckpointRequest | RestoreRequest,
): Promise<void> {
  try {
    const running = runDetached(command, args, { env, timeout_ms: request.timeout_ms, onTimeout: 'leave' });
    if ('onBegun' in request) request.onBegun?.();
    await running;
  } catch (error) {
    if (error instanceof UmsError && error.code === 'UMS_E_TIMEOUT') throw error;
    const log = code === 'UMS_E_DUMP' ? 'dump.log' : 'restore.log';
    throw criuFailure(code, await logOf(request.workDir, log), toUmsError(error));
  }
}

/** A CRIU works on the box, perhaps one that an agent before this one has started. */
export async function isCriuAtWork(name: string): Promise<boolean> {
  const marks = [dumpsFrom(name), restoresInto(name)];
  for await (const words of commandLines()) if (words.some((word) => marks.includes(word))) return true;
  return false;
}

/** What is done to processes before CRIU has let go of them would not last. */
export async function waitForCriu(name: string): Promise<void> {
  if (await poll(async () => !(await isCriuAtWork(name)), AT_WORK_LIMIT_MS, 20)) return;
  throw new UmsError('UMS_E_TIMEOUT', {
    message: `A dump or a restore of ${name} that was started earlier has not ended`,
    fault: 'ums',
    mend: 'Wait until the criu process ends and try again; do not kill it with SIGKILL.',
  });
}

/** The process of the box that is the first of its process ids. */
export function firstOf(pids: readonly number[]): number | undefined {
  return pids.find((pid) => /^NSpid:.*\t1$/m.test(readIfThere(`/proc/${pid}/status`) ?? ''));
}

/** The control group of this agent. */
export async function ownGroup(): Promise<string> {
  return parseCgroups(await readFile('/proc/self/cgroup', 'utf8')).unified ?? '/';
}
