import { type FileHandle, open, rm, statfs } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';

const MIB = 1024 * 1024;
/** So much is free ahead of whoever needs it. */
const AHEAD_BYTES = 256 * MIB;
const LOOK_MS = 4;

/**
 * Memory that the machine has in hand, given to whoever fills the same tmpfs as they fill it. In a virtual machine the
 * first touch of a page is its host's work, which can cost more than all that the page path does with that page and differs
 * from hour to hour; and what is free for two seconds goes back to the host. So it is taken before the measurement begins,
 * kept, and given back step by step just ahead of its use.
 */
export class MemoryAtHand {
  readonly fill_bytes_s: number;
  readonly #file: FileHandle;
  readonly #path: string;
  readonly #end = new AbortController();
  readonly #giving: Promise<void>;

  private constructor(path: string, file: FileHandle, bytes: number, fill_bytes_s: number) {
    this.#path = path;
    this.#file = file;
    this.fill_bytes_s = fill_bytes_s;
    this.#giving = this.#give(bytes);
  }

  static async take(path: string, bytes: number, signal: AbortSignal): Promise<MemoryAtHand> {
    const block = Buffer.alloc(MIB, 1);
    const file = await open(path, 'wx', 0o600);
    try {
      const began = performance.now();
      for (let done = 0; done < bytes; done += MIB) {
        signal.throwIfAborted();
        await file.writeFile(block);
      }
      return new MemoryAtHand(path, file, bytes, bytes / ((performance.now() - began) / 1000));
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** All that is left is free at once. */
  async giveBack(): Promise<void> {
    if (this.#end.signal.aborted) return;
    this.#end.abort();
    await this.#giving;
    await this.#file.close();
    await rm(this.#path);
  }

  /** What others take of the file system, and a little more, is no longer kept here. */
  async #give(bytes: number): Promise<void> {
    const before_bytes = (await usedBytes(this.#path)) - bytes;
    for (let kept = bytes; kept > 0 && !this.#end.signal.aborted; ) {
      const others = (await usedBytes(this.#path)) - before_bytes - kept;
      const next = Math.min(kept, Math.max(0, bytes - others - AHEAD_BYTES));
      if (next < kept) await this.#file.truncate(next);
      kept = next;
      await sleep(LOOK_MS);
    }
  }
}

async function usedBytes(path: string): Promise<number> {
  const { bsize, blocks, bfree } = await statfs(path);
  return (blocks - bfree) * bsize;
}
