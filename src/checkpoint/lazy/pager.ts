import { spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { mkdir, open, readFile, rename } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { isSpaceName, type PageRange, type SpaceContents, type SpaceName } from '#src/transfer/pages/model.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { z } from 'zod';
import { argumentPages } from './first-touched.ts';
import { lazyContents } from './pagemap.ts';

/**
 * The pager fills the memory of a lazily restored service (perl/pager.pl). It is a process of its own, so that it outlives
 * the agent; this is the agent's end of it.
 */
export interface PagerOptions {
  /** The pager's own directory. */
  dir: string;
  imagesDir: string;
  /** Where `criu restore` runs: it looks for lazy-pages.socket there. */
  workDir: string;
  storeDir: string;
}

const countersSchema = z.object({
  state: z.enum(['waiting', 'serving', 'finished', 'failed', 'stopped']),
  error: z.string().optional(),
  /** Since restore was finished. */
  elapsed_ms: z.int(),
  cpu_ms: z.int(),
  faults: z.int(),
  /** Faults whose page was not there yet. */
  remote_faults: z.int(),
  pages: z.int(),
  zero_pages: z.int(),
  open_pages: z.int(),
  total_pages: z.int(),
  processes: z.int(),
  /** How many faults were served within 2^index µs, of local and of remote ones. */
  latency_us: z.array(z.int()),
  remote_latency_us: z.array(z.int()),
});
export type PagerStatus = z.infer<typeof countersSchema>;
export type DemandListener = (name: SpaceName, range: PageRange, urgent: boolean) => void;

const PAGER = fileURLToPath(new URL('perl/pager.pl', import.meta.url));
const CONTROL = 'control.sock';
const KEEPER = 'keeper.sock';
const RESULT = 'result.json';
const OPTIONS = 'options.json';
const START_LIMIT_MS = 10_000;
const CALL_LIMIT_MS = 10_000;
const LINE_MAX = 1 << 20;

const optionsSchema = z.object({ imagesDir: z.string(), pid: z.int().optional() });

/**
 * Starts the pager, before the freeze: it is ready when this resolves, but knows nothing of the images yet. Where one
 * works already, that is it.
 */
export async function startPager(options: PagerOptions): Promise<LazyPager> {
  await mkdir(options.dir, { recursive: true, mode: 0o700 });
  const there = await tryConnect(join(options.dir, CONTROL));
  if (there !== undefined) return LazyPager.over(there, options);
  const keeper = await tryConnect(join(options.dir, KEEPER));
  keeper?.destroy();
  if (keeper !== undefined)
    throw pagerError('an earlier one left a service without all of its memory: stop it first', '');
  const failures = await spawnPager(options);
  const end = performance.now() + START_LIMIT_MS;
  while (performance.now() < end && failures.length === 0) {
    const socket = await tryConnect(join(options.dir, CONTROL));
    if (socket !== undefined) return LazyPager.over(socket, options);
    await delay(2);
  }
  throw pagerError(`it did not start: ${failures[0] ?? 'no answer'}`, await logOf(options.dir));
}

/** The list that is returned gets what ends the process. */
async function spawnPager(options: PagerOptions): Promise<string[]> {
  const output = openSync(join(options.dir, 'pager.log'), 'a', 0o600);
  const child = spawn('perl', [PAGER, options.dir, options.workDir, options.storeDir], {
    detached: true,
    stdio: ['ignore', output, output],
  });
  closeSync(output);
  const failures: string[] = [];
  child.once('error', (error) => failures.push(error.message));
  child.once('exit', (code, signal) => failures.push(`it ended with ${code ?? signal}`));
  child.unref();
  await writePrivately(join(options.dir, OPTIONS), JSON.stringify({ imagesDir: options.imagesDir, pid: child.pid }));
  return failures;
}

/** Finds the pager again, or what it left behind; undefined when there never was one. */
export async function reconnectPager(dir: string): Promise<LazyPager | undefined> {
  let options: z.infer<typeof optionsSchema>;
  try {
    options = optionsSchema.parse(JSON.parse(await readFile(join(dir, OPTIONS), 'utf8')));
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined;
    throw error;
  }
  const socket = await tryConnect(join(dir, CONTROL));
  return LazyPager.over(socket, { dir, imagesDir: options.imagesDir });
}

interface Call {
  command: string;
  resolve: (rest: string) => void;
  reject: (error: unknown) => void;
}

export class LazyPager {
  readonly #dir: string;
  readonly #imagesDir: string;
  readonly #calls: Call[] = [];
  readonly #listeners: DemandListener[] = [];
  /** Undefined when the connection is gone; `#closed` resolves then. */
  #socket: Socket | undefined;
  #closed: Promise<void> = Promise.resolve();
  #input = '';

  private constructor(socket: Socket | undefined, options: { dir: string; imagesDir: string }) {
    this.#dir = options.dir;
    this.#imagesDir = options.imagesDir;
    if (socket !== undefined) this.#attach(socket);
  }

  static over(socket: Socket | undefined, options: { dir: string; imagesDir: string }): LazyPager {
    return new LazyPager(socket, options);
  }

  #attach(socket: Socket): void {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#socket = socket;
    this.#closed = promise;
    this.#input = '';
    socket.setEncoding('latin1');
    socket.on('data', (text: string) => this.#take(text));
    // An error is followed by close, and what it means is in the result that the pager left, or did not leave.
    socket.on('error', () => undefined);
    socket.on('close', () => {
      this.#socket = undefined;
      for (const call of this.#calls.splice(0)) call.reject(pagerError('it is gone', ''));
      resolve();
    });
  }

  /** The pager may have dropped a connection that did not keep up: true if it lives. */
  async #reattach(): Promise<boolean> {
    if (this.#socket !== undefined) return true;
    const socket = await tryConnect(join(this.#dir, CONTROL));
    if (socket === undefined) return false;
    this.#attach(socket);
    if (this.#listeners.length > 0) this.#call('listen').catch(() => undefined);
    return true;
  }

  #take(text: string): void {
    this.#input += text;
    const lines = this.#input.split('\n');
    this.#input = lines.pop() ?? '';
    if (this.#input.length > LINE_MAX) this.#socket?.destroy();
    for (const line of lines) this.#obey(line);
  }

  #obey(line: string): void {
    const [word, second = '', ...rest] = line.split(' ');
    if (word === 'demand') {
      const name = `process:${second}`;
      const range = { first: Number(rest[0]), count: Number(rest[1]) };
      if (!isSpaceName(name) || !Number.isSafeInteger(range.first) || !Number.isSafeInteger(range.count)) return;
      for (const listener of this.#listeners) listener(name, range, rest[2] === 'urgent');
      return;
    }
    const at = this.#calls.findIndex((call) => call.command === second);
    const [call] = at < 0 ? [] : this.#calls.splice(at, 1);
    if (word === 'ok') call?.resolve(rest.join(' '));
    else call?.reject(pagerError(rest.join(' '), ''));
  }

  #call(command: string): Promise<string> {
    const socket = this.#socket;
    if (socket === undefined) return Promise.reject(pagerError('it is gone', ''));
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    const call = { command, resolve, reject };
    const timer = setTimeout(() => {
      this.#calls.splice(this.#calls.indexOf(call), 1);
      reject(pagerError(`it does not answer to "${command}"`, ''));
    }, CALL_LIMIT_MS);
    this.#calls.push(call);
    socket.write(`${command}\n`);
    return promise.finally(() => clearTimeout(timer));
  }

  /** The images are there: reads which pages are lazy and listens for restore. Resolves when it listens. */
  async serve(contents?: readonly SpaceContents[]): Promise<void> {
    const lazy = contents ?? (await lazyContents(this.#imagesDir));
    const early = linesOf(argumentPages(this.#imagesDir, lazy)).map((line) => `early ${line}`);
    await writePrivately(join(this.#dir, 'plan'), [...linesOf(lazy), ...early].join(''));
    await this.#call('serve');
  }

  /**
   * Resolves when the keeper, too, holds every process's userfaultfd, and the pages are there that must not be missed: from
   * then on a dead pager cannot spoil memory.
   */
  async hold(): Promise<void> {
    try {
      await this.#call('hold');
    } catch (error) {
      // A small memory may be filled before anybody asks.
      if ((await this.status()).state !== 'finished') throw error;
    }
  }

  /** From now on demands come here. Those that wait already come again. */
  onDemand(listener: DemandListener): void {
    this.#listeners.push(listener);
    if (this.#listeners.length === 1) this.#call('listen').catch(() => undefined);
  }

  /** These pages have become final. */
  final(name: SpaceName, range: PageRange): void {
    if (!name.startsWith('process:')) return;
    this.#socket?.write(`final ${name.slice('process:'.length)} ${range.first} ${range.count}\n`);
  }

  /** The processes run, so filling them may take a second processor. */
  hurry(): void {
    this.#socket?.write('hurry\n');
  }

  async status(): Promise<PagerStatus> {
    if (await this.#reattach()) {
      try {
        return countersSchema.parse(JSON.parse(await this.#call('status')));
      } catch (error) {
        // It may have ended in between.
        if (this.#socket !== undefined) throw error;
      }
    }
    return this.#result();
  }

  async #result(): Promise<PagerStatus> {
    try {
      return countersSchema.parse(JSON.parse(await readFile(join(this.#dir, RESULT), 'utf8')));
    } catch {
      return { ...NOTHING, state: 'failed', error: 'The pager was killed.' };
    }
  }

  /** Resolves when all memory is filled; rejects as soon as that cannot be any more. */
  async finished(signal?: AbortSignal): Promise<PagerStatus> {
    while (await this.#reattach()) await untilClosed(this.#closed, signal);
    const status = await this.#result();
    if (status.state === 'finished') return status;
    throw pagerError(status.error ?? `it is ${status.state}`, await logOf(this.#dir));
  }

  /**
   * Ends the pager and its keeper. Only for when no process of the restored service can run any more: whatever it lacks
   * would be zeros to it.
   */
  async stop(): Promise<void> {
    if (await this.#reattach()) await this.#call('stop').catch(() => undefined);
    this.disconnect();
    const keeper = await tryConnect(join(this.#dir, KEEPER));
    if (keeper === undefined) return;
    await new Promise<void>((resolve) => {
      keeper.on('error', () => undefined);
      keeper.once('close', () => resolve());
      keeper.resume();
      keeper.write('end\n');
    });
  }

  /** Lets go of the connection only: the pager goes on. */
  disconnect(): void {
    this.#socket?.destroy();
    this.#socket = undefined;
  }
}

function linesOf(contents: readonly SpaceContents[]): string[] {
  return contents.flatMap(({ name, ranges }) =>
    ranges.map((range) => `${name.slice('process:'.length)} ${range.first} ${range.count}\n`),
  );
}

const NOTHING = {
  elapsed_ms: 0,
  cpu_ms: 0,
  faults: 0,
  remote_faults: 0,
  pages: 0,
  zero_pages: 0,
  open_pages: 0,
  total_pages: 0,
  processes: 0,
  latency_us: [],
  remote_latency_us: [],
};

async function untilClosed(closed: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  if (signal === undefined) return closed;
  signal.throwIfAborted();
  const { promise, reject } = Promise.withResolvers<never>();
  const abort = (): void => reject(signal.reason);
  signal.addEventListener('abort', abort, { once: true });
  try {
    await Promise.race([closed, promise]);
  } finally {
    signal.removeEventListener('abort', abort);
  }
}

function tryConnect(path: string): Promise<Socket | undefined> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.removeAllListeners();
      resolve(socket);
    });
    socket.once('error', () => resolve(undefined));
  });
}

async function writePrivately(path: string, text: string): Promise<void> {
  const handle = await open(`${path}.new`, 'w', 0o600);
  try {
    await handle.writeFile(text);
  } finally {
    await handle.close();
  }
  await rename(`${path}.new`, path);
}

async function logOf(dir: string): Promise<string> {
  return (await readFile(join(dir, 'pager.log'), 'utf8').catch(() => '')).slice(-4000);
}

function pagerError(what: string, detail: string): UmsError {
  return new UmsError('UMS_E_CHILD', {
    message: `The pager of a restored service failed: ${what}`,
    fault: 'destination',
    mend: 'See the detail. A service whose memory cannot be filled must be frozen or removed.',
    ...(detail === '' ? {} : { detail }),
  });
}
