import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { criuVersion, versionAtLeast } from '#src/checkpoint/criu.ts';
import { criuFailure } from '#src/checkpoint/errors.ts';
import { FrozenMemory } from '#src/checkpoint/memory/index.ts';
import { UmsError, toUmsError } from '#src/telemetry/errors.ts';
import type { AfterCheckpoint, CheckpointRequest } from '../contract.ts';
import { poll } from './cgroup.ts';
import { runDetached } from './child.ts';
import { commandLines } from './command-lines.ts';
import type { RuntimeContainer } from './container.ts';
import {
  completeImages,
  type HiddenMemory,
  hideMemory,
  requireAsAssumed,
  type SeenMappings,
  seeMappings,
} from './hidden-memory.ts';
import { requireProgram } from './runtime.ts';
import { binOf, writeStandIns } from './stand-ins.ts';

/** Descriptor on which first the gate before CRIU, then CRIU's page server talks to the agent; it passes through runc. */
const SIGNAL_FD = 5;
/** PS_IOV_CLOSE in a whole message; from CRIU 4.2 on that is 32 bytes, before 24, and what is too much is not read. */
const CLOSE_MESSAGE = Buffer.alloc(32);
CLOSE_MESSAGE.writeUInt32LE(0x1023, 0);
/** Dumps that wait at their gates at the same time. */
const WAITING_MAX = 64;
/** The first CRIU that leaves out what may be dropped. */
const HIDES_SINCE = '4.2';
const READY_LIMIT_MS = 30_000;

/**
 * A dump whose runc has been started and has done everything but start CRIU: the gate in CRIU's place (criu-gate.pl)
 * waits for a word from here. If this agent ends before, the gate ends too, and nothing was touched.
 */
interface GatedDump {
  request: CheckpointRequest;
  settings: string;
  /** Looks at what is hidden from CRIU; undefined where nothing can be. */
  frozen: Promise<FrozenMemory> | undefined;
  /** What the processes' mappings were while it was prepared. */
  seen: SeenMappings;
  /** The gate is reached. */
  ready: Promise<void>;
  /** Every image is written. */
  complete: Promise<void>;
  /** runc has ended. */
  ended: Promise<unknown>;
  go: () => void;
  giveUp: () => void;
  /** Nobody looks at hidden memory any more. */
  close: () => void;
}

let hidingWorks = true;
const waiting = new Map<string, GatedDump>();
/** What goes on after the last dump of a container. */
const over = new Map<string, AfterCheckpoint>();

/** Brings a dump of a running container so far that only CRIU itself remains to be started. */
export async function prepareDump(
  container: RuntimeContainer,
  request: CheckpointRequest,
  pids: readonly number[],
): Promise<void> {
  const { id } = container;
  const known = waiting.get(id);
  if (known !== undefined && sameRequest(known.request, request)) {
    await see(known, pids);
    return await known.ready;
  }
  giveUpDump(id);
  if (waiting.size >= WAITING_MAX) return;
  const dump = await startDump(container, request);
  await see(dump, pids);
  waiting.set(id, dump);
  const forget = () => {
    if (waiting.get(id) !== dump) return;
    waiting.delete(id);
    dump.close();
  };
  dump.ended.then(forget, forget);
  try {
    await dump.ready;
  } catch (error) {
    giveUpDump(id);
    throw error;
  }
}

async function see(dump: GatedDump, pids: readonly number[]): Promise<void> {
  if (dump.frozen !== undefined) dump.seen = await seeMappings(pids);
}

/** Lets go a dump that was prepared and is not wanted. Harmless when there is none. */
export function giveUpDump(id: string): void {
  const dump = waiting.get(id);
  waiting.delete(id);
  over.delete(id);
  dump?.giveUp();
  dump?.close();
}

export function afterDump(id: string): AfterCheckpoint {
  return over.get(id) ?? { ended: Promise.resolve(), holds: Promise.resolve() };
}

function sameRequest(left: CheckpointRequest, right: CheckpointRequest): boolean {
  return left.imagesDir === right.imagesDir && left.workDir === right.workDir && left.lazy === right.lazy;
}

/** Dumps a frozen container with its runtime; CRIU leaves it frozen, and it runs no instruction in between. */
export async function dumpFrozen(
  container: RuntimeContainer,
  request: CheckpointRequest,
  pids: readonly number[],
): Promise<void> {
  const { id } = container;
  const known = waiting.get(id);
  const prepared = known !== undefined && sameRequest(known.request, request) ? known : undefined;
  if (prepared === undefined) giveUpDump(id);
  waiting.delete(id);
  const dump = prepared ?? (await startDump(container, request));
  let hidden: HiddenMemory[] = [];
  try {
    await dump.ready;
    const frozen = hidingWorks ? await dump.frozen : undefined;
    if (frozen !== undefined) hidden = hideMemory(pids, join(dump.settings, 'smaps'), dump.seen, frozen);
    dump.go();
    request.onBegun?.();
    await Promise.race([dump.ended, dump.complete]);
    await completeImages(request.imagesDir, hidden);
    const ended = dump.ended.then(() => undefined);
    // Whoever wants to know asks for it; until then a failure is nobody's.
    const holds = ended
      .then(() => (frozen === undefined ? undefined : requireAsAssumed(hidden, frozen)))
      .catch(hidNothingMore);
    holds.then(dump.close, dump.close);
    over.set(id, { ended, holds });
  } catch (error) {
    dump.close();
    // Whatever was wrong, the next dump does without.
    if (hidden.length > 0) hidingWorks = false;
    if (error instanceof UmsError && error.code === 'UMS_E_TIMEOUT') throw error;
    throw criuFailure('UMS_E_DUMP', await logOf(request.workDir, 'dump.log'), toUmsError(error));
  }
}

function hidNothingMore(error: unknown): never {
  hidingWorks = false;
  throw error;
}

async function startDump(container: RuntimeContainer, request: CheckpointRequest): Promise<GatedDump> {
  const runc = await requireProgram('runc');
  const version = await criuVersion();
  const settings = await writeSettings(container, request, version);
  const ready = Promise.withResolvers<void>();
  const complete = Promise.withResolvers<void>();
  let socket: Duplex | undefined;
  const ended = runDetached(runc, argumentsOf(container, request), {
    env: {
      CRIU_CONFIG_FILE: join(settings, 'criu.conf'),
      PATH: `${binOf(settings)}:${process.env['PATH'] ?? ''}`,
    },
    timeout_ms: request.timeout_ms,
    onTimeout: 'leave',
    socket: {
      fd: SIGNAL_FD,
      use: (given) => {
        socket = given;
        // The gate's word that it waits; then CRIU's answer to being sent away, which follows its last image.
        given.once('data', () => {
          ready.resolve();
          given.once('data', () => complete.resolve());
        });
        // What goes wrong with the dump is told by the end of the process.
        given.on('error', () => undefined);
      },
    },
  });
  const sweep = () => rm(settings, { recursive: true, force: true });
  ended.then(sweep, sweep).catch(() => undefined);
  ended.catch(ready.reject);
  ended.then(
    () => ready.resolve(),
    () => undefined,
  );
  ready.promise.catch(() => undefined);
  const slow = setTimeout(() => socket?.destroy(), READY_LIMIT_MS);
  ready.promise.finally(() => clearTimeout(slow)).catch(() => undefined);
  const canHide = request.lazy === true && process.arch === 'x64' && versionAtLeast(version, HIDES_SINCE);
  const frozen = canHide && hidingWorks ? FrozenMemory.open() : undefined;
  return {
    request,
    settings,
    seen: new Map(),
    frozen,
    ready: ready.promise,
    complete: complete.promise,
    ended,
    go: () => {
      socket?.write('g');
      // Only a lazy dump's CRIU speaks here: it offers the memory that it did not write, and nobody wants it.
      if (request.lazy === true) socket?.write(CLOSE_MESSAGE);
    },
    giveUp: () => socket?.destroy(),
    close: () => void frozen?.then((memory) => memory.close()),
  };
}

function argumentsOf(container: RuntimeContainer, request: CheckpointRequest): string[] {
  return [
    '--root',
    container.root,
    'checkpoint',
    '--leave-running',
    '--image-path',
    request.imagesDir,
    '--work-path',
    request.workDir,
    '--file-locks',
    ...(container.hookedNetwork === true ? ['--empty-ns', 'network'] : []),
    // runc tells CRIU of it in any case, which the settings cannot alter.
    ...(container.localConnections === true ? ['--tcp-established'] : []),
    ...(request.lazy === true ? ['--lazy-pages'] : []),
    ...(request.pageServer === undefined
      ? []
      : ['--page-server', `${request.pageServer.address}:${request.pageServer.port}`]),
    container.id,
  ];
}

async function writeSettings(
  { localConnections }: RuntimeContainer,
  request: CheckpointRequest,
  version: string | undefined,
): Promise<string> {
  // CRIU 4 can leave connections alone instead of locking and copying them; they are closed at the destination anyhow.
  const closing = versionAtLeast(version, '4.0') ? 'tcp-close' : 'tcp-established';
  // Who has been frozen while connecting to its neighbour, which had not accepted it yet, connects again.
  const connections = localConnections === true ? 'tcp-established\nskip-in-flight' : closing;
  const directory = await mkdtemp(join(tmpdir(), 'ums-dump-'));
  const served = request.lazy === true ? `ps-socket=${SIGNAL_FD}\n` : '';
  const put = (name: string, text: string) => writeFile(join(directory, name), text, { mode: 0o600 });
  // The service is frozen and its connections are closed at the destination, so no packet has to be kept from it.
  await put('criu.conf', `${connections}\nnetwork-lock skip\nverbosity=3\n${served}`);
  await put('signal', String(SIGNAL_FD));
  await writeStandIns(directory, await requireProgram('criu'));
  return directory;
}

/**
 * Waits until no `runc checkpoint` works on the container any more. An agent that was killed leaves its dump running, and
 * CRIU puts the freezer back into the state in which it found it: thawing before that would not last.
 */
export async function waitForDumps(id: string, limit_ms: number): Promise<void> {
  giveUpDump(id);
  if (await poll(async () => !(await isBeingDumped(id)), limit_ms, 20)) return;
  throw new UmsError('UMS_E_TIMEOUT', {
    message: `A dump of ${id} that was started earlier has not ended`,
    fault: 'ums',
    state: 'The service is frozen.',
    mend: 'Wait until the criu process ends and try again; do not kill it with SIGKILL.',
  });
}

async function isBeingDumped(id: string): Promise<boolean> {
  for await (const words of commandLines()) {
    if (words.includes('checkpoint') && words.includes(id)) return true;
  }
  return false;
}

/** The log's text, or nothing: it is evidence, and its absence must not hide the error it would explain. */
export async function logOf(workDir: string, name: string): Promise<string> {
  try {
    return await readFile(join(workDir, name), 'utf8');
  } catch {
    return '';
  }
}
