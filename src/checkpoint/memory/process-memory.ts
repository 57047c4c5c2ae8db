import { closeSync, constants, existsSync, openSync, readSync } from 'node:fs';
import { PAGE_BYTES, type PageRange, type PageReader } from '#src/transfer/pages/model.ts';
import { mappingsNow } from './mappings.ts';
import { presentPages } from './pagemap.ts';
import { ifThere } from './proc.ts';

/**
 * The memory of another process, read while it runs or stands still, without its help.
 *
 * Memory that is not there (any more) is no failure: `read` reports how far it came. After an exec the new memory is
 * read; after the process's end none, also when its pid is used again, because the process is held by its directory in
 * /proc.
 */
export class ProcessMemory implements PageReader {
  readonly pid: number;
  readonly #directory: number | undefined;
  #memory: number | undefined;
  #closed = false;

  private constructor(pid: number, directory: number | undefined) {
    this.pid = pid;
    this.#directory = directory;
    this.#memory = this.#open();
  }

  static async open(pid: number): Promise<ProcessMemory> {
    const flags = constants.O_RDONLY | constants.O_DIRECTORY;
    return new ProcessMemory(
      pid,
      ifThere(() => openSync(`/proc/${pid}`, flags)),
    );
  }

  /** Undefined when the process has ended. */
  static async openLiving(pid: number): Promise<ProcessMemory | undefined> {
    const memory = await ProcessMemory.open(pid);
    if (memory.exists()) return memory;
    memory.close();
    return undefined;
  }

  read(first: number, count: number, target: Buffer): number {
    const bytes = Math.min(count * PAGE_BYTES, target.length - (target.length % PAGE_BYTES));
    let done = 0;
    let reopened = false;
    while (done < bytes && this.#memory !== undefined) {
      const got = this.#readAt(this.#memory, target, done, bytes - done, first * PAGE_BYTES + done);
      // Nothing mapped there. What of a page was read before that does not count.
      if (got === undefined) break;
      done += got;
      if (got > 0) continue;
      // An address space that has ended reads as an empty file: the program was replaced, or is no more.
      if (reopened) break;
      this.#reopen();
      reopened = true;
      done = 0;
    }
    return Math.floor(done / PAGE_BYTES);
  }

  #readAt(memory: number, target: Buffer, offset: number, length: number, address: number): number | undefined {
    return ifThere(() => readSync(memory, target, offset, length, BigInt(address)));
  }

  /** Pages that hold something, of these ranges or of all memory that CRIU leaves to us. */
  async present(
    ranges: readonly PageRange[] = mappingsNow(this.pid).filter((mapping) => mapping.lazy),
    signal?: AbortSignal,
  ): Promise<PageRange[]> {
    return presentPages(this.pid, ranges, signal);
  }

  /** Whether the process, not another that was given its pid, exists; also as a zombie, which has no memory. */
  exists(): boolean {
    return this.#directory !== undefined && !this.#closed && existsSync(`/proc/self/fd/${this.#directory}/stat`);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#memory !== undefined) closeSync(this.#memory);
    this.#memory = undefined;
    if (this.#directory !== undefined) closeSync(this.#directory);
  }

  #reopen(): void {
    if (this.#memory !== undefined) closeSync(this.#memory);
    this.#memory = this.#open();
  }

  #open(): number | undefined {
    const directory = this.#directory;
    if (directory === undefined) return undefined;
    return ifThere(() => openSync(`/proc/self/fd/${directory}/mem`, constants.O_RDONLY));
  }
}
