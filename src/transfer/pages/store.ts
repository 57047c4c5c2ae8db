import { closeSync, existsSync, fstatSync, ftruncate, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { mkdir, readdir, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { z } from 'zod';
import type { PageCache } from './cache.ts';
import {
  countPages,
  isSpaceName,
  normaliseRanges,
  PAGE_BYTES,
  type PageRange,
  type PageState,
  pagesFailed,
  type SpaceContents,
  type SpaceName,
  SPACES_MAX,
} from './model.ts';
import { CHUNK_PAGES, PageBytes } from './page-table.ts';
import {
  chunksPath,
  dataPath,
  isMissing,
  noRoom,
  openPrivate,
  readAt,
  State,
  stateOf,
  statePath,
  writeAt,
} from './store-files.ts';

export { PageStoreReader, State } from './store-files.ts';

interface Space {
  readonly data: number;
  readonly state: number;
  /** Appended to: the numbers of the chunks of pages that were ever written, because Node cannot ask a file for its holes. */
  readonly chunks: number;
  readonly touched: Set<number>;
  readonly states: PageBytes;
}

export interface StoreOptions {
  /** Pages of an earlier migration, to be copied from when the sender names them by hash. */
  readonly cache?: PageCache;
  /** Bytes of pages that may be stored. */
  readonly limit_bytes?: number;
}

/** Pages of zeros cost no memory but a byte each. */
const PAGES_HELD_MAX = 2 ** 27;
const truncate = promisify(ftruncate);
const ZEROS = Buffer.alloc(64 * PAGE_BYTES);
const sessionSchema = z.object({ session: z.string().regex(/^[0-9a-f]{32}$/) });

/**
 * The pages of one migration at its destination: a directory in memory (tmpfs). For each space a sparse file with page p
 * at offset p * 4096 and a file with one byte a page, its state. The content of a page is written before its state, and
 * a final page is never written again, so another process may read both at any time. `sealed.json` appears when
 * everything is final. Only one process writes; its methods are synchronous because memory answers at once.
 */
export class PageStore {
  readonly dir: string;
  readonly cache: PageCache | undefined;
  readonly #limit_bytes: number;
  readonly #spaces = new Map<SpaceName, Space>();
  readonly #scratch = new Uint8Array(64 * 1024);
  #used_pages = 0;
  #final_pages = 0;
  #session: string | undefined;

  private constructor(dir: string, options: StoreOptions, limit_bytes: number) {
    this.dir = dir;
    this.cache = options.cache;
    this.#limit_bytes = limit_bytes;
  }

  /** Opens the store in `dir`, with what is in it already if there is any. */
  static async open(dir: string, options: StoreOptions = {}): Promise<PageStore> {
    await mkdir(dir, { recursive: true, mode: 0o700 });
    const { bavail, bsize } = await statfs(dir);
    const store = new PageStore(dir, options, options.limit_bytes ?? bavail * bsize);
    for (const file of await readdir(dir)) {
      const name = file.endsWith('.state') ? file.slice(0, -'.state'.length) : '';
      if (isSpaceName(name)) store.#load(store.#space(name));
    }
    store.#session = store.#readSession();
    return store;
  }

  get pages(): number {
    return this.#used_pages;
  }

  get finalPages(): number {
    return this.#final_pages;
  }

  get spaces(): SpaceName[] {
    return [...this.#spaces.keys()];
  }

  /** The session whose pages these are; undefined before there was one. */
  get session(): string | undefined {
    return this.#session;
  }

  bindSession(session: string): void {
    this.#writeWhole('session.json', sessionSchema.parse({ session }));
    this.#session = session;
  }

  get sealed(): boolean {
    return existsSync(join(this.dir, 'sealed.json'));
  }

  /** Says to everybody who looks that all these pages are final. */
  seal(contents: readonly SpaceContents[]): void {
    this.#writeWhole('sealed.json', { session: this.#session, contents });
  }

  /** Stores content; pages that are final already stay as they are. Listener ranges are what became final. */
  write(name: SpaceName, first: number, content: Buffer, final: boolean): void {
    const space = this.#space(name);
    const state = final ? State.final : State.provisional;
    this.#eachUnfinal(space, first, content.length / PAGE_BYTES, (from, count) => {
      this.#reserve(space, from, count);
      const at = (from - first) * PAGE_BYTES;
      writeAt(space.data, content.subarray(at, at + count * PAGE_BYTES), from * PAGE_BYTES);
      this.#setState(space, from, count, state);
    });
  }

  /** Stores zeros, as a hole wherever the file has one. */
  zero(name: SpaceName, first: number, count: number, final: boolean): void {
    const space = this.#space(name);
    const state = (final ? State.final : State.provisional) | State.zero;
    this.#eachUnfinal(space, first, count, (from, many) => {
      this.#eachSame(space, from, many, 0xff, (at, same, byte) => {
        const fits = (byte & State.mask) !== State.absent || this.#used_pages + same <= PAGES_HELD_MAX;
        const hole = (byte & State.zero) !== 0 || byte === State.absent;
        if (!fits) throw noRoom();
        if (!hole) this.#writeZeros(space, at, same);
        this.#setState(space, at, same, state);
      });
    });
  }

  /** What is stored of these pages, whatever state they are in. */
  read(name: SpaceName, first: number, target: Buffer): void {
    const space = this.#spaces.get(name);
    if (space === undefined) target.fill(0);
    else readAt(space.data, target, first * PAGE_BYTES);
  }

  has(name: SpaceName): boolean {
    return this.#spaces.has(name);
  }

  state(name: SpaceName, page: number): PageState {
    return stateOf(this.#spaces.get(name)?.states.get(page) ?? State.absent);
  }

  /** Whether something, provisional or final, is held of each of these pages. */
  holds(name: SpaceName, first: number, count: number): boolean {
    const space = this.#spaces.get(name);
    if (space === undefined) return false;
    let whole = true;
    this.#eachSame(space, first, count, State.mask, (_at, _many, byte) => {
      if ((byte & State.mask) === State.absent) whole = false;
    });
    return whole;
  }

  /** What is held is what it must be; returns what is not held. */
  markFinal(name: SpaceName, ranges: readonly PageRange[]): PageRange[] {
    const space = this.#space(name);
    const absent: PageRange[] = [];
    for (const { first, count } of ranges) {
      this.#eachSame(space, first, count, 0xff, (at, many, byte) => {
        const held = byte & State.mask;
        if (held === State.absent) absent.push({ first: at, count: many });
        else if (held === State.provisional) this.#setState(space, at, many, (byte & ~State.mask) | State.final);
      });
    }
    return absent;
  }

  /** These pages exist no more. */
  forget(name: SpaceName, ranges: readonly PageRange[]): void {
    const space = this.#space(name);
    for (const { first, count } of ranges) {
      this.#eachSame(space, first, count, 0xff, (at, many, byte) => {
        if ((byte & State.mask) === State.absent) return;
        // What the file has there stays, so it is no hole when the page comes back as zeros.
        const clean = (byte & State.zero) !== 0 && (byte & State.stale) === 0;
        this.#setState(space, at, many, clean ? State.absent : State.stale);
      });
    }
  }

  /** Everything that is held, in order. */
  held(name: SpaceName): PageRange[] {
    const chunks = [...(this.#spaces.get(name)?.touched ?? [])].toSorted((a, b) => a - b);
    const ranges = chunks.map((chunk) => ({ first: chunk * CHUNK_PAGES, count: CHUNK_PAGES }));
    return this.select(name, normaliseRanges(ranges), (state) => state !== 'absent');
  }

  /** Pages of these that are not final. */
  missing(contents: readonly SpaceContents[]): SpaceContents[] {
    const missing: SpaceContents[] = [];
    for (const { name, ranges } of contents) {
      const lacking = this.select(name, ranges, (state) => state !== 'final');
      if (lacking.length > 0) missing.push({ name, ranges: lacking });
    }
    return missing;
  }

  /** The parts of `ranges` in whose state somebody is interested. */
  select(
    name: SpaceName,
    ranges: readonly PageRange[],
    wanted: (state: PageState, zero: boolean) => boolean,
  ): PageRange[] {
    const space = this.#spaces.get(name);
    const found: { first: number; count: number }[] = [];
    for (const { first, count } of ranges) {
      if (space === undefined) {
        if (wanted('absent', false)) found.push({ first, count });
        continue;
      }
      this.#eachSame(space, first, count, State.mask | State.zero, (at, many, byte) => {
        if (!wanted(stateOf(byte), (byte & State.zero) !== 0)) return;
        const last = found.at(-1);
        if (last !== undefined && last.first + last.count === at) last.count += many;
        else found.push({ first: at, count: many });
      });
    }
    return found;
  }

  /**
   * Gives back the memory of all pages, which have all been placed; what is known of them stays. Not to be closed before
   * this has resolved.
   */
  async empty(): Promise<void> {
    await Promise.all([...this.#spaces.values()].map(({ data }) => truncate(data, 0)));
  }

  close(): void {
    for (const space of this.#spaces.values()) {
      closeSync(space.chunks);
      closeSync(space.data);
      closeSync(space.state);
    }
    this.#spaces.clear();
  }

  #eachUnfinal(space: Space, first: number, count: number, visit: (first: number, count: number) => void): void {
    this.#eachSame(space, first, count, State.mask, (at, many, byte) => {
      if ((byte & State.mask) !== State.final) visit(at, many);
    });
  }

  /** Calls back for each stretch of pages whose state bytes are the same under the mask. */
  #eachSame(
    space: Space,
    first: number,
    count: number,
    mask: number,
    visit: (first: number, count: number, byte: number) => void,
  ): void {
    for (let at = first; at < first + count; ) {
      const byte = space.states.get(at);
      const many = space.states.sameFor(at, first + count - at, mask);
      visit(at, many, byte);
      at += many;
    }
  }

  #setState(space: Space, first: number, count: number, byte: number): void {
    const before = space.states.get(first) & State.mask;
    const after = byte & State.mask;
    // Callers pass stretches of one state, so the first page speaks for all.
    if (before === State.absent && after !== State.absent) this.#used_pages += count;
    if (before !== State.absent && after === State.absent) this.#used_pages -= count;
    if (before !== State.final && after === State.final) this.#final_pages += count;
    if (before === State.final && after !== State.final) this.#final_pages -= count;
    this.#touch(space, first, count);
    space.states.fill(first, count, byte);
    for (let done = 0; done < count; ) {
      const part = Math.min(this.#scratch.length, count - done);
      writeAt(space.state, this.#scratch.subarray(0, part).fill(byte), first + done);
      done += part;
    }
  }

  /** Refuses before more is stored than there is room for. */
  #reserve(space: Space, first: number, count: number): void {
    if ((space.states.get(first) & State.mask) !== State.absent) return;
    if ((this.#used_pages + count) * PAGE_BYTES > this.#limit_bytes) throw noRoom();
  }

  #writeZeros(space: Space, first: number, count: number): void {
    for (let done = 0; done < count; ) {
      const part = Math.min(ZEROS.length / PAGE_BYTES, count - done);
      writeAt(space.data, ZEROS.subarray(0, part * PAGE_BYTES), (first + done) * PAGE_BYTES);
      done += part;
    }
  }

  #space(name: SpaceName): Space {
    const known = this.#spaces.get(name);
    if (known !== undefined) return known;
    if (this.#spaces.size >= SPACES_MAX) throw pagesFailed(`there are more than ${SPACES_MAX} processes and images`);
    const data = openPrivate(dataPath(this.dir, name), true);
    const state = openPrivate(statePath(this.dir, name), true);
    const chunks = openPrivate(chunksPath(this.dir, name), true);
    const space: Space = { data, state, chunks, touched: new Set(), states: new PageBytes() };
    this.#spaces.set(name, space);
    return space;
  }

  /** Takes up what an earlier process of this agent stored. */
  #load(space: Space): void {
    const numbers = new Float64Array(Math.floor(fstatSync(space.chunks).size / 8));
    readAt(space.chunks, new Uint8Array(numbers.buffer), 0);
    const bytes = new Uint8Array(CHUNK_PAGES);
    for (const chunk of numbers) {
      space.touched.add(chunk);
      const first = chunk * CHUNK_PAGES;
      readAt(space.state, bytes, first);
      for (let at = 0; at < CHUNK_PAGES; at += 1) {
        const byte = bytes[at] ?? 0;
        if (byte === State.absent) continue;
        space.states.fill(first + at, 1, byte);
        if ((byte & State.mask) !== State.absent) this.#used_pages += 1;
        if ((byte & State.mask) === State.final) this.#final_pages += 1;
      }
    }
  }

  #touch(space: Space, first: number, count: number): void {
    const last = Math.floor((first + count - 1) / CHUNK_PAGES);
    for (let chunk = Math.floor(first / CHUNK_PAGES); chunk <= last; chunk += 1) {
      if (space.touched.has(chunk)) continue;
      writeAt(space.chunks, new Uint8Array(Float64Array.of(chunk).buffer), space.touched.size * 8);
      space.touched.add(chunk);
    }
  }

  #readSession(): string | undefined {
    try {
      return sessionSchema.parse(JSON.parse(readFileSync(join(this.dir, 'session.json'), 'utf8'))).session;
    } catch (error) {
      if (isMissing(error)) return undefined;
      throw error;
    }
  }

  #writeWhole(file: string, value: object): void {
    const path = join(this.dir, file);
    writeFileSync(`${path}.new`, JSON.stringify(value), { mode: 0o600 });
    renameSync(`${path}.new`, path);
  }
}

export function contentPages(contents: readonly SpaceContents[]): number {
  return contents.reduce((sum, { ranges }) => sum + countPages(ranges), 0);
}
