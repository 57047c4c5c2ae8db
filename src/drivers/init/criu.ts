import { readFileSync, readlinkSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { criuFailure } from '#src/checkpoint/errors.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import type { CheckpointRequest, RestoreRequest } from '../contract.ts';
import { ask } from './door.ts';
import { takenIds, until } from './processes.ts';
import { type Descriptors, descriptorsSchema } from './schema.ts';

const DESCRIPTORS = 'descriptors.json';
/** Larger files that are deleted and still open are refused, as they would travel within the images. */
const GHOST_LIMIT = '1G';
/** Somebody's `podman exec`, or a program of the agent's, may have an id for a moment. */
const IDS_LIMIT_MS = 2000;

/**
 * What CRIU is told in both directions. There is no control group and no network that it may manage; established
 * connections are closed, because keeping one takes CAP_NET_ADMIN. The rest is in criu.conf.
 */
const COMMON = [
  '--manage-cgroups=ignore',
  '--network-lock=skip',
  '--tcp-close',
  '--file-locks',
  '--link-remap',
  '--ext-unix-sk',
  '--verbosity=4',
];

/** `directories` are looked through for what inotify watches: opening it by its handle takes CAP_DAC_READ_SEARCH. */
export async function dump(
  runDir: string,
  known: Descriptors,
  directories: readonly string[],
  request: CheckpointRequest,
): Promise<void> {
  const { imagesDir, workDir, pageServer } = request;
  const args = [
    'dump',
    `--tree=${known.pid}`,
    `--images-dir=${imagesDir}`,
    `--work-dir=${workDir}`,
    '--log-file=dump.log',
    // They stand still before and after, and run no instruction of theirs in between.
    '--leave-stopped',
    `--ghost-limit=${GHOST_LIMIT}`,
    '--force-irmap',
    ...directories.map((path) => `--irmap-scan-path=${path}`),
    ...COMMON,
    ...(pageServer === undefined
      ? []
      : ['--page-server', `--address=${pageServer.address}`, `--port=${pageServer.port}`]),
  ];
  const running = runCriu(runDir, ['criu', ...args], request.timeout_ms);
  request.onBegun?.();
  const status = await running;
  if (status !== 0) throw await failure('UMS_E_DUMP', workDir, 'dump.log', status);
  await writeFile(join(imagesDir, DESCRIPTORS), JSON.stringify(known), { mode: 0o600 });
}

/** Restores the processes under their own ids, stopped as they were dumped. */
export async function restore(runDir: string, known: Descriptors, request: RestoreRequest): Promise<void> {
  const { imagesDir, workDir } = request;
  await requireFree(known.ids, IDS_LIMIT_MS);
  const args = [
    'restore',
    '--restore-detached',
    // Not one instruction before the commit: CRIU sends each process SIGSTOP while it still holds it.
    '--leave-stopped',
    `--images-dir=${imagesDir}`,
    `--work-dir=${workDir}`,
    '--log-file=restore.log',
    // Engines give the root directory of a container different modes.
    '--skip-file-rwx-check',
    ...COMMON,
    ...inherited(known),
  ];
  const status = await runCriu(runDir, ['restore', String(known.pid), ...args], request.timeout_ms);
  if (status !== 0) throw await failure('UMS_E_RESTORE', workDir, 'restore.log', status);
}

/** CRIU is never killed while it holds processes, so only the waiting for it has a limit. */
async function runCriu(runDir: string, words: readonly string[], timeout_ms: number): Promise<number> {
  const [word, status] = await ask(runDir, words, timeout_ms);
  return word === 'ended' ? Number(status) : -1;
}

async function failure(
  code: 'UMS_E_DUMP' | 'UMS_E_RESTORE',
  workDir: string,
  log: string,
  status: number,
): Promise<UmsError> {
  const text = await readFile(join(workDir, log), 'utf8').catch(() => '');
  const cause = new UmsError(code, { message: `criu ended with ${status}`, fault: 'ums', detail: text.slice(-4000) });
  return criuFailure(code, text, cause);
}

export async function readDescriptors(imagesDir: string): Promise<Descriptors> {
  const parsed = descriptorsSchema.safeParse(JSON.parse(await readFile(join(imagesDir, DESCRIPTORS), 'utf8')));
  if (parsed.success) return parsed.data;
  throw new UmsError('UMS_E_IMAGE_CORRUPT', {
    message: 'What came with the images of the service cannot be read.',
    fault: 'source',
    state: 'Nothing was restored from it.',
    mend: 'Use images that the same version of ums made.',
    cause: parsed.error,
  });
}

/** Waits for a while until no process of this container has an id that the service brings along. */
export async function requireFree(ids: readonly number[], limit_ms: number): Promise<void> {
  let taken: number[] = [];
  const free = () => {
    const here = takenIds();
    taken = ids.filter((id) => here.has(id));
    return taken.length === 0;
  };
  if (await until(free, limit_ms)) return;
  throw new UmsError('UMS_E_RESTORE', {
    message: `A process in this container has an id that the service brings along: ${taken.slice(0, 5).join(', ')} (${nameOf(taken[0])}).`,
    fault: 'destination',
    mend: 'End what was started in this container beside its init, or restart the container.',
  });
}

function nameOf(id: number | undefined): string {
  try {
    return readFileSync(`/proc/${id ?? 0}/comm`, 'utf8').trim();
  } catch {
    // It has ended since.
    return 'it has ended since';
  }
}

/**
 * Pipes of standard input, output and error lead out of the container. The restored service gets the ones that this
 * container has, which CRIU's own process inherits from the init.
 */
function inherited({ stdio }: Descriptors): string[] {
  const done = new Set<string>();
  return stdio.flatMap((target, fd) => {
    if (!target.startsWith('pipe:') || done.has(target)) return [];
    done.add(target);
    return ['--inherit-fd', `fd[${fd}]:${target}`];
  });
}

/** Where the standard descriptors of a process lead. */
export function stdioOf(pid: number): string[] {
  return [0, 1, 2].map((fd) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${fd}`);
    } catch {
      // It has closed it.
      return '';
    }
  });
}
