import { randomBytes } from 'node:crypto';
import { opendir, realpath } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { UmsError } from '#src/telemetry/errors.ts';
import { Applier, APPLY_PROGRAM } from './applier.ts';
import { ByteReader, malformed } from './byte-reader.ts';
import { StreamingChild } from './child.ts';
import { type Head, readDeletions, readHead, readSockets } from './header.ts';
import { readPatchHead, readPieces } from './patch.ts';
import { pathProblem, toText } from './paths.ts';
import type { TreeLocation } from './send.ts';
import { makeSocket } from './sockets.ts';
import { isSummary, judge, unpackingArguments } from './tar.ts';
import { snapshotPath, type TarEntry, TarParser } from './tar-parser.ts';

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
 * Receives passes into one directory. The same pass may be applied again, whole or after it broke off in the middle.
 * The order matters: deletions make way for entries of another type, sockets and parts of files are there before tar
 * sets the times of the directories that hold them.
 */
export class TreeReceiver {
  readonly #tree: TreeLocation;
  #applier: Applier | undefined;
  #extract: StreamingChild | undefined;
  #isChecked = false;
  #isClosed = false;

  constructor(tree: TreeLocation) {
    this.#tree = tree;
  }

  /** Starts what hardly any pass does without, so that the first one does not wait for it; receiving tells what is wrong. */
  async expect(): Promise<void> {
    await this.#check();
    if (!this.#isClosed) this.#extract ??= confine(this.#tree, 'extract', unpackingArguments());
  }

  /** Starts the programs that the next pass may need, so that it does not wait for them. */
  async prepare(): Promise<void> {
    await this.#check();
    this.#extract ??= confine(this.#tree, 'extract', unpackingArguments());
    this.#applier ??= startApplier(this.#tree);
    await this.#applier.done();
  }

  async receive(body: AsyncIterable<Uint8Array>, options: ReceiveOptions): Promise<ReceiveResult> {
    const reader = new ByteReader(body, options.limits.bytes);
    const abort = (): void => this.#kill();
    options.signal?.addEventListener('abort', abort, { once: true });
    try {
      options.signal?.throwIfAborted();
      await this.#check();
      return await this.#receive(reader, options);
    } catch (error) {
      this.#kill();
      options.signal?.throwIfAborted();
      throw error;
    } finally {
      options.signal?.removeEventListener('abort', abort);
      await reader.close();
    }
  }

  /** Ends the programs that wait; resolves when they are gone. */
  async close(): Promise<void> {
    this.#isClosed = true;
    const [extract, applier] = [this.#extract, this.#applier];
    this.#kill();
    await Promise.all([extract?.end(), applier?.close()]);
  }

  async #check(): Promise<void> {
    // All of a container is the service's, which names directories of it as it likes.
    if (!this.#isChecked && this.#tree.confined !== false) await refuseSystemDirectory(this.#tree.path);
    this.#isChecked = true;
  }

  #kill(): void {
    this.#extract?.kill();
    this.#applier?.kill();
    this.#extract = undefined;
    this.#applier = undefined;
  }

  async #receive(reader: ByteReader, options: ReceiveOptions): Promise<ReceiveResult> {
    const tree = this.#tree;
    const head = await readHead(reader);
    checkHead(head, this.#tree, options.limits.entries);
    if (head.full && !(await isEmpty(tree))) await emptyTree(tree, options.signal);
    const needsApplier = head.deletions + head.directories + head.patches > 0;
    const applier = needsApplier ? (this.#applier ??= startApplier(tree)) : undefined;
    if (applier !== undefined && head.deletions > 0) await removePaths(applier, readDeletions(reader, head));
    const key = randomBytes(6).toString('hex');
    for await (const socket of readSockets(reader, head)) {
      options.signal?.throwIfAborted();
      await makeSocket(tree.path, socket, key);
    }
    const directories: Buffer[] = [];
    while (directories.length < head.directories) directories.push((await readPatchHead(reader, true)).bytes);
    if (applier !== undefined) await patchFiles(applier, reader, head.patches, options);
    const entries = await this.#unpack(reader, head, options);
    if (applier !== undefined) {
      for (const directory of directories) await applier.send('m', directory);
      await applier.done();
    }
    return { bytes: reader.consumed, files: entries + head.sockets + head.patches, deletions: head.deletions };
  }

  async #unpack(reader: ByteReader, head: Head, options: ReceiveOptions): Promise<number> {
    if (head.entries === 0) {
      if ((await reader.next()) !== undefined) throw malformed('goes on after its end');
      return 0;
    }
    const child = this.#extract ?? confine(this.#tree, 'extract', unpackingArguments());
    this.#extract = undefined;
    return await extract(child, reader, head, options);
  }
}

/** Receives one pass. */
export async function receiveTree(
  tree: TreeLocation,
  body: AsyncIterable<Uint8Array>,
  options: ReceiveOptions,
): Promise<ReceiveResult> {
  const receiver = new TreeReceiver(tree);
  try {
    return await receiver.receive(body, options);
  } finally {
    await receiver.close();
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
  const total = head.entries + head.deletions + head.sockets + head.directories + head.patches;
  if (total > limit) throw malformed(`announces ${total} entries, more than the ${limit} agreed on`);
}

type Step = 'empty' | 'apply' | 'extract';

function confine(tree: TreeLocation, step: Step, args: readonly string[], signal?: AbortSignal): StreamingChild {
  signal?.throwIfAborted();
  if (tree.confined === false) return startHere(tree.path, step, args, signal);
  const namespaces = ['--mount', '--propagation=private', '--net', '--ipc', '--pid', '--fork', '--kill-child=KILL'];
  return new StreamingChild('unshare', [...namespaces, 'sh', SCRIPT, tree.path, step, ...args], {
    signal,
    isHarmless: isSummary,
  });
}

/** The same steps without namespaces, in a container that holds nothing but the service and what moves it. */
function startHere(target: string, step: Step, args: readonly string[], signal?: AbortSignal): StreamingChild {
  const commands = {
    empty: ['find', target, '-xdev', '-mindepth', '1', '-depth', '-delete'],
    apply: ['perl', '-e', `chdir shift or die "$!\n"; ${args[0] ?? ''}`, target],
    extract: ['tar', '--extract', '--file=-', `--directory=${target}`, ...args],
  } satisfies Record<Step, readonly string[]>;
  const [program = '', ...rest] = commands[step];
  return new StreamingChild(program, rest, { signal, isHarmless: isSummary });
}

function startApplier(tree: TreeLocation): Applier {
  return new Applier(confine(tree, 'apply', [APPLY_PROGRAM]));
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

async function isEmpty({ path }: TreeLocation): Promise<boolean> {
  const directory = await opendir(path);
  try {
    return (await directory.read()) === null;
  } finally {
    await directory.close();
  }
}

async function emptyTree(tree: TreeLocation, signal: AbortSignal | undefined): Promise<void> {
  await finish(confine(tree, 'empty', [], signal), 'emptying the directory', signal);
}

/** Nothing is removed before the list is complete. */
async function removePaths(applier: Applier, lists: AsyncIterable<Uint8Array>): Promise<void> {
  for await (const list of lists) await applier.send('d', list);
  await applier.send('x');
  // tar may be about to make what a deletion makes room for.
  await applier.done();
}

async function patchFiles(applier: Applier, reader: ByteReader, count: number, options: ReceiveOptions): Promise<void> {
  for (let patch = 0; patch < count; patch += 1) {
    const { bytes, size } = await readPatchHead(reader, false);
    await applier.send('f', bytes);
    for await (const piece of readPieces(reader, size)) {
      await applier.send('b', piece);
      options.onBytes?.(piece.length);
    }
    await applier.send('c');
  }
  await applier.done();
}

async function extract(
  child: StreamingChild,
  reader: ByteReader,
  head: Head,
  options: ReceiveOptions,
): Promise<number> {
  const gate = new Gate(head.entries);
  child.output.resume();
  const abort = (): void => child.kill();
  options.signal?.addEventListener('abort', abort, { once: true });
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
    options.signal?.removeEventListener('abort', abort);
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
      const linkProblem = pathProblem(snapshotPath({ path: entry.target }));
      if (linkProblem !== undefined) {
        throw malformed(`has a link to a name that ${linkProblem}: ${toText(entry.target).slice(0, 200)}`);
      }
    }
  }
}
