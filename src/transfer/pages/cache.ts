import { randomBytes } from 'node:crypto';
import { closeSync, fstatSync } from 'node:fs';
import { type FileHandle, mkdir, open, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { z } from 'zod';
import { PAGE_BYTES, pagesFailed } from './model.ts';
import { isMissing, openPrivate, readAt } from './store-files.ts';

/**
 * Pages that a service had when it was moved, kept for a later move of the same service to this system: a directory with
 * `pages` (content, one after the other), `hashes` (the xxh64 of each, 8 bytes little-endian) and `cache.json`. A hash
 * only finds a page; that it is the right one is proved by the digest of the frame that names it.
 */
const VERSION = 1;
export const CACHE_PAGES_MAX = 2 ** 22;
const manifestSchema = z.object({ version: z.literal(VERSION), pages: z.int().min(0).max(CACHE_PAGES_MAX) });

export class PageCache {
  readonly hashes: BigUint64Array;
  readonly #pages: number;

  private constructor(hashes: BigUint64Array, pages: number) {
    this.hashes = hashes;
    this.#pages = pages;
  }

  /** The cache in `dir`; undefined where there is none, or none that can be used. */
  static async open(dir: string): Promise<PageCache | undefined> {
    let text: string;
    try {
      text = await readFile(join(dir, 'cache.json'), 'utf8');
    } catch (error) {
      if (isMissing(error)) return undefined;
      throw error;
    }
    const manifest = manifestSchema.safeParse(parseJson(text));
    if (!manifest.success) return undefined;
    const raw = await readFile(join(dir, 'hashes'));
    const pages = openPrivate(join(dir, 'pages'), false);
    if (raw.length !== manifest.data.pages * 8 || fstatSync(pages).size !== manifest.data.pages * PAGE_BYTES) {
      closeSync(pages);
      return undefined;
    }
    const hashes = new BigUint64Array(manifest.data.pages);
    new Uint8Array(hashes.buffer).set(raw);
    return new PageCache(hashes, pages);
  }

  get pages(): number {
    return this.hashes.length;
  }

  /** Pages from number `index` on; the caller keeps within `pages`. */
  read(index: number, target: Buffer): void {
    readAt(this.#pages, target, index * PAGE_BYTES);
  }

  close(): void {
    closeSync(this.#pages);
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    // A cache that cannot be read is no cache.
    return undefined;
  }
}

const BLOCK_PAGES = 256;
const BLOCKS_MAX = 16;
/** Pages on their way to the disk, and the hash of each in halves. */
interface Block {
  content: Buffer;
  hashes: Uint32Array;
  pages: number;
}

/**
 * After so much the kernel is asked to write to the disk what it has. Left to itself it waits until there are gigabytes,
 * and writes them when the service stands still.
 */
const SYNC_BYTES = 64 * 2 ** 20;

/**
 * Writes such a cache from pages as they pass by. It never holds anybody up: where the disk is slower than the pages
 * come, pages are left out. What is written replaces an older cache in one step, when it is finished.
 */
export class PageCacheWriter {
  readonly #dir: string;
  readonly #work: string;
  readonly #file: FileHandle;
  readonly #limit_pages: number;
  readonly #seen: HashSet;
  readonly #free: Block[] = [];
  #current: Block | undefined;
  #blocks = 0;
  /** Of all pages that are written, in halves. */
  #hashes: Uint32Array;
  #written = 0;
  #queue: Promise<void> = Promise.resolve();
  #unsynced_bytes = 0;
  /** Undefined when nothing is being written to the disk. */
  #syncing: Promise<void> | undefined;
  #isCalm = false;
  #finished: Promise<number> | undefined;
  #failure: unknown;

  private constructor(dir: string, work: string, file: FileHandle, limit_pages: number) {
    this.#dir = dir;
    this.#work = work;
    this.#file = file;
    this.#limit_pages = limit_pages;
    this.#seen = new HashSet(limit_pages);
    this.#hashes = new Uint32Array(2 * Math.min(4096, limit_pages));
  }

  static async create(dir: string, limit_bytes: number): Promise<PageCacheWriter> {
    await mkdir(dirname(dir), { recursive: true, mode: 0o700 });
    const work = `${dir}.new-${randomBytes(6).toString('hex')}`;
    await mkdir(work, { mode: 0o700 });
    const file = await open(join(work, 'pages'), 'wx', 0o600);
    return new PageCacheWriter(dir, work, file, Math.min(CACHE_PAGES_MAX, Math.floor(limit_bytes / PAGE_BYTES)));
  }

  /** Whether pages are still taken. */
  get open(): boolean {
    return this.#finished === undefined && this.#failure === undefined && this.#seen.size < this.#limit_pages;
  }

  /** Takes copies of the pages in `content`; `halves` has the hash of each as two words, the low one first. */
  add(content: Buffer, pages: number, halves: Uint32Array): void {
    for (let page = 0; page < pages && this.open; page += 1) {
      const low = halves[page * 2] ?? 0;
      const high = halves[page * 2 + 1] ?? 0;
      const block = this.#room();
      if (block === undefined) return;
      if (!this.#seen.add(low, high)) continue;
      content.copy(block.content, block.pages * PAGE_BYTES, page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
      block.hashes[block.pages * 2] = low;
      block.hashes[block.pages * 2 + 1] = high;
      block.pages += 1;
      if (block.pages === BLOCK_PAGES) this.#flush();
    }
  }

  /** From here on the disk is left to others until `resume` or `finish`. Resolves when nothing is on its way there. */
  async calm(): Promise<void> {
    this.#isCalm = true;
    await this.#syncing;
  }

  /** Nobody has to wait for the disk any more. What is left to the end, the next commit to the disk has to wait for. */
  resume(): void {
    this.#isCalm = false;
  }

  /** Makes what was taken the cache of `dir`; nothing is taken any more. Asked again, the answer is the same. */
  finish(): Promise<number> {
    return (this.#finished ??= this.#finish());
  }

  async #finish(): Promise<number> {
    this.#flush();
    await this.#close();
    if (this.#failure !== undefined) {
      await rm(this.#work, { recursive: true, force: true });
      throw pagesFailed('the cache of pages could not be written', 'source');
    }
    const hashes = this.#hashes.subarray(0, this.#written * 2);
    await writeFile(join(this.#work, 'hashes'), new Uint8Array(hashes.buffer, 0, hashes.byteLength), { mode: 0o600 });
    const manifest = manifestSchema.parse({ version: VERSION, pages: this.#written });
    await writeFile(join(this.#work, 'cache.json'), JSON.stringify(manifest), { mode: 0o600 });
    const old = `${this.#work}.old`;
    await rename(this.#dir, old).catch((error: unknown) => {
      if (!isMissing(error)) throw error;
    });
    await rename(this.#work, this.#dir);
    await rm(old, { recursive: true, force: true });
    return this.#written;
  }

  /** Drops what was taken. An older cache stays as it is, unless this one has taken its place. */
  async discard(): Promise<void> {
    if (this.#finished !== undefined) {
      await Promise.allSettled([this.#finished]);
      await rm(this.#dir, { recursive: true, force: true });
      return;
    }
    await this.#close();
    await rm(this.#work, { recursive: true, force: true });
  }

  async #close(): Promise<void> {
    await this.#queue;
    await this.#syncing;
    await this.#file.close();
  }

  #room(): Block | undefined {
    if (this.#current !== undefined) return this.#current;
    this.#current = this.#free.pop();
    if (this.#current === undefined && this.#blocks < BLOCKS_MAX) {
      this.#blocks += 1;
      const content = Buffer.allocUnsafeSlow(BLOCK_PAGES * PAGE_BYTES);
      this.#current = { content, hashes: new Uint32Array(2 * BLOCK_PAGES), pages: 0 };
    }
    return this.#current;
  }

  #flush(): void {
    const block = this.#current;
    if (block === undefined || block.pages === 0) return;
    this.#current = undefined;
    this.#queue = this.#queue
      .then(() => this.#write(block))
      .catch((error: unknown) => {
        this.#failure ??= error;
      })
      .finally(() => {
        block.pages = 0;
        this.#free.push(block);
      });
  }

  async #write({ content, hashes, pages }: Block): Promise<void> {
    const length = pages * PAGE_BYTES;
    let done = 0;
    while (done < length) {
      const position = this.#written * PAGE_BYTES + done;
      done += (await this.#file.write(content, done, length - done, position)).bytesWritten;
    }
    if ((this.#written + pages) * 2 > this.#hashes.length) {
      const larger = new Uint32Array(Math.min(2 * CACHE_PAGES_MAX, this.#hashes.length * 2));
      larger.set(this.#hashes);
      this.#hashes = larger;
    }
    this.#hashes.set(hashes.subarray(0, pages * 2), this.#written * 2);
    this.#written += pages;
    this.#unsynced_bytes += length;
    if (this.#unsynced_bytes >= SYNC_BYTES && this.#syncing === undefined && !this.#isCalm) this.#sync();
  }

  /** Not waited for by what comes next. */
  #sync(): void {
    this.#unsynced_bytes = 0;
    this.#syncing = this.#file
      .datasync()
      .catch((error: unknown) => {
        this.#failure ??= error;
      })
      .finally(() => (this.#syncing = undefined));
  }
}

/** Hashes that were seen: open addressing, 8 bytes a slot, grown as needed. In halves, which are numbers and no objects. */
class HashSet {
  readonly #limit: number;
  #slots = new Uint32Array(2 * 8192);
  size = 0;

  constructor(limit: number) {
    this.#limit = limit;
  }

  /** False when it was there already, or there is no room. */
  add(low: number, high: number): boolean {
    if (this.size >= this.#limit) return false;
    if (this.size * 3 > this.#slots.length) this.#grow();
    if (!insert(this.#slots, low, high)) return false;
    this.size += 1;
    return true;
  }

  #grow(): void {
    const slots = this.#slots;
    const larger = new Uint32Array(slots.length * 2);
    for (let at = 0; at < slots.length; at += 2) {
      const low = slots[at] ?? 0;
      const high = slots[at + 1] ?? 0;
      if (low !== 0 || high !== 0) insert(larger, low, high);
    }
    this.#slots = larger;
  }
}

/** No hash is 0, which marks a slot that is free. */
function insert(slots: Uint32Array, low: number, high: number): boolean {
  const mask = slots.length / 2 - 1;
  for (let slot = low & mask; ; slot = (slot + 1) & mask) {
    const at = slot * 2;
    if (slots[at] === low && slots[at + 1] === high) return false;
    if (slots[at] === 0 && slots[at + 1] === 0) {
      slots[at] = low;
      slots[at + 1] = high;
      return true;
    }
  }
}
