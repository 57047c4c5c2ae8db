import { randomBytes } from 'node:crypto';
import { realpath } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { UmsError } from '#src/telemetry/errors.ts';
import { ByteReader, malformed } from './byte-reader.ts';
import { StreamingChild } from './child.ts';
import { type Head, readDeletions, readHead, readSockets } from './header.ts';
import { pathProblem, toText } from './paths.ts';
import { snapshotPath, type TreeLocation } from './send.ts';
import { makeSocket } from './sockets.ts';
import { isSummary, judge, unpackingArguments } from './tar.ts';
import { type TarEntry, TarParser } from './tar-parser.ts';

export interface ReceiveOptions {
  /** Bytes of the stream; entries of the archive, deletions and sockets together. */
  limits: { bytes: number; entries: number };
  signal?: AbortSignal;
  onBytes?: (bytes: number) => void;
}

export interface ReceiveResult {
  bytes: number;
  files: number;
  deletions: number;
}

const SCRIPT = fileURLToPath(new URL('./confine.sh', import.meta.url));

/**
 * Applies one pass to a directory. The same pass may be applied again, whole or after it broke off in the middle.
 * The order matters: deletions make way for entries of another type, sockets are made before tar sets the times of the
 * directories that hold them.
 */
export async function receiveTree(
  tree: TreeLocation,
  body: AsyncIterable<Uint8Array>,
  options: ReceiveOptions,
): Promise<ReceiveResult> {
  const reader = new ByteReader(body, options.limits.bytes);
  try {
    await refuseSystemDirectory(tree.path);
    const head = await readHead(reader);
    checkHead(head, tree, options.limits.entries);
    if (head.full) await emptyTree(tree.path, options.signal);
    if (head.deletions > 0) await removePaths(tree.path, readDeletions(reader, head), options.signal);
    const key = randomBytes(6).toString('hex');
    for await (const socket of readSockets(reader, head)) {
      options.signal?.throwIfAborted();
      await makeSocket(tree.path, socket, key);
    }
    const entries = await extract(tree.path, reader, head, options);
    return { bytes: reader.consumed, files: entries + head.sockets, deletions: head.deletions };
  } finally {
    await reader.close();
  }
}

/** Directories of the host itself, and those that hold everyone's data: a pass would replace what is in them. */
const SYSTEM_WITH_ALL_BELOW = [
  '/bin',
  '/boot',
  '/dev',
  '/etc',
  '/lib',
  '/lib32',
  '/lib64',
  '/proc',
  '/sbin',
  '/sys',
  '/usr',
];
const SYSTEM_ITSELF = new Set([
  '/',
  '/home',
  '/mnt',
  '/media',
  '/opt',
  '/root',
  '/run',
  '/srv',
  '/tmp',
  '/var',
  '/var/lib',
]);

/** Receiving replaces a directory's content, so a tree that lies in the host's own directories is refused outright. */
export async function refuseSystemDirectory(path: string): Promise<void> {
  let real: string;
  try {
    real = await realpath(path);
  } catch (error) {
    throw new UmsError('UMS_E_TRANSFER', {
      message: `cannot receive files into ${path}: ${error instanceof Error ? error.message : String(error)}`,
      fault: 'destination',
      mend: 'The service must have been created there before its files arrive.',
      cause: error,
    });
  }
  const isSystem = SYSTEM_WITH_ALL_BELOW.some((directory) => real === directory || real.startsWith(`${directory}/`));
  if (!isSystem && !SYSTEM_ITSELF.has(real)) return;
  throw new UmsError('UMS_E_TRANSFER', {
    message: `${real} belongs to the system itself, so its content is not replaced by a service's`,
    fault: 'user',
    state: 'Nothing was written.',
    mend: 'Keep the data of the service in a directory or volume of its own.',
  });
}

function checkHead(head: Head, tree: TreeLocation, limit: number): void {
  if (head.kind !== tree.kind) throw malformed(`is of the kind ${head.kind}, not ${tree.kind}`);
  const total = head.entries + head.deletions + head.sockets;
  if (total > limit) throw malformed(`announces ${total} entries, more than the ${limit} agreed on`);
}

function confine(target: string, step: string, args: readonly string[], signal?: AbortSignal): StreamingChild {
  signal?.throwIfAborted();
  const namespaces = ['--mount', '--propagation=private', '--net', '--ipc', '--pid', '--fork', '--kill-child=KILL'];
  return new StreamingChild('unshare', [...namespaces, 'sh', SCRIPT, target, step, ...args], {
    signal,
    isHarmless: isSummary,
  });
}

/** Ends a confined step: reads its (empty) output away, waits, and throws what it complained about. */
async function finish(child: StreamingChild, what: string, signal: AbortSignal | undefined): Promise<void> {
  child.closeInput();
  child.output.resume();
  const end = await child.end();
  signal?.throwIfAborted();
  const failure = judge(end, what, 'destination', [0]);
  if (failure !== undefined) throw failure;
}

async function emptyTree(target: string, signal: AbortSignal | undefined): Promise<void> {
  await finish(confine(target, 'empty', [], signal), 'emptying the directory', signal);
}

async function removePaths(
  target: string,
  lists: AsyncIterable<Uint8Array>,
  signal: AbortSignal | undefined,
): Promise<void> {
  const child = confine(target, 'remove', [], signal);
  let isWhole = false;
  try {
    for await (const list of lists) if (!(await child.write(list))) break;
    await child.write(Buffer.from('end of list\0'));
    await finish(child, 'removing deleted files', signal);
    isWhole = true;
  } finally {
    if (!isWhole) child.kill();
  }
}

async function extract(target: string, reader: ByteReader, head: Head, options: ReceiveOptions): Promise<number> {
  if (head.entries === 0) {
    if ((await reader.next()) !== undefined) throw malformed('goes on after its end');
    return 0;
  }
  const gate = new Gate(head.entries);
  const child = confine(target, 'extract', unpackingArguments(), options.signal);
  child.output.resume();
  let isWhole = false;
  try {
    let isReading = true;
    for (let chunk = await reader.next(); chunk !== undefined && isReading; chunk = await reader.next()) {
      gate.parser.push(chunk);
      options.onBytes?.(chunk.length);
      // After the end of the archive only padding may follow, and tar may be gone by then.
      isReading = (await child.write(chunk)) || gate.parser.ended;
    }
    // An archive that was cut off between two files looks whole to tar, so it must not see an end.
    if (isReading && !gate.parser.ended) throw malformed('ended early');
    await finish(child, 'writing the files of the service', options.signal);
    if (!gate.parser.ended) throw malformed('was not read to its end');
    isWhole = true;
    return gate.entries;
  } finally {
    if (!isWhole) {
      child.kill();
      await child.end();
    }
  }
}

/**
 * Looks at every entry before tar does. tar works where it can harm nothing else, so this is for early and clear
 * refusal: names that an honest sender never writes, and more entries than announced.
 */
class Gate {
  entries = 0;
  readonly parser: TarParser;
  readonly #limit: number;

  constructor(limit: number) {
    this.#limit = limit;
    this.parser = new TarParser({ entry: (entry) => this.#check(entry) });
  }

  #check(entry: TarEntry): void {
    this.entries += 1;
    if (this.entries > this.#limit) throw malformed(`has more than the ${this.#limit} entries it announced`);
    const path = snapshotPath(entry);
    const problem = path === '' && entry.type === '5' ? undefined : pathProblem(path);
    if (problem !== undefined) throw malformed(`has a name that ${problem}: ${toText(entry.path).slice(0, 200)}`);
    if (entry.type === '1') {
      const linkProblem = pathProblem(snapshotPath({ ...entry, path: entry.target }));
      if (linkProblem !== undefined) {
        throw malformed(`has a link to a name that ${linkProblem}: ${toText(entry.target).slice(0, 200)}`);
      }
    }
  }
}
