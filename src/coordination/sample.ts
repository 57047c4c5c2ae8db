import { setImmediate, setTimeout as sleep } from 'node:timers/promises';
import { deflateRawSync } from 'node:zlib';
import { mappings, ProcessMemory } from '#src/checkpoint/memory/index.ts';
import { countPages, intersectRanges, normaliseRanges, PAGE_BYTES, type PageRange } from '#src/transfer/pages/model.ts';

/** Pages looked at, over all processes; their changes stand for those of all pages. */
const SAMPLE_PAGES = 2048;
/** Milliseconds after the first look at which the sample is looked at again. */
const LOOKS_MS = [35, 100] as const;
/** One in so many sampled pages is compressed, to see what compression would gain. */
const COMPRESSED_EVERY = 64;
/** After so many pages whatever else this agent does has its turn. */
const TURN_PAGES = 512;

interface Sampled {
  memory: ProcessMemory;
  page: number;
  /** What it held at the first look. */
  content: Buffer;
}

/** What a short look at a running service says of its memory. */
export interface MemorySample {
  /** Bytes that a lazy restore can leave for later. */
  present_bytes: number;
  /** Share of them that are zero. */
  zero_share: number;
  /** Compressed size divided by size; 1 is incompressible. */
  compress_ratio: number;
  /** How many different bytes were written within each interval, by its length. */
  changed: ChangedBytes[];
}

export interface ChangedBytes {
  elapsed_ms: number;
  bytes: number;
}

/**
 * Looks at some pages of every process now and a little later: which are zero, how they compress, and how many have
 * changed. It only reads, so it disturbs nothing and may be done for a check that touches nothing.
 */
export async function sampleMemory(pids: readonly number[], signal: AbortSignal): Promise<MemorySample> {
  const taken = await TakenPages.take(pids, signal, { compress: true });
  try {
    const changed: ChangedBytes[] = [];
    for (const after_ms of LOOKS_MS) {
      await sleep(Math.max(after_ms - taken.age_ms, 1), undefined, { signal });
      changed.push(await taken.changed());
    }
    const { present_bytes, zero_share, compress_ratio } = taken;
    return { present_bytes, zero_share, compress_ratio, changed };
  } finally {
    taken.close();
  }
}

/** Some pages of every process as they were at one time, to be compared with what they hold later. At most 8 MiB. */
export class TakenPages {
  #began_ms = performance.now();
  readonly #opened: ProcessMemory[] = [];
  readonly #sample: Sampled[] = [];
  #zeroes = 0;
  #compressed = { raw: 0, packed: 0 };
  present_bytes = 0;

  private constructor() {}

  /** With `compress`, some of them are compressed, to see what that would gain. */
  static async take(
    pids: readonly number[],
    signal: AbortSignal,
    { compress = false }: { compress?: boolean } = {},
  ): Promise<TakenPages> {
    const taken = new TakenPages();
    try {
      const spaces: { memory: ProcessMemory; present: PageRange[] }[] = [];
      for (const pid of pids) {
        signal.throwIfAborted();
        const memory = await ProcessMemory.open(pid);
        taken.#opened.push(memory);
        const lazy = normaliseRanges((await mappings(pid)).filter((mapping) => mapping.lazy));
        spaces.push({ memory, present: intersectRanges(normaliseRanges(await memory.present(lazy, signal)), lazy) });
      }
      await taken.#read(spaces, compress, signal);
      return taken;
    } catch (error) {
      taken.close();
      throw error;
    }
  }

  get age_ms(): number {
    return performance.now() - this.#began_ms;
  }

  get zero_share(): number {
    return this.#zeroes / Math.max(this.#sample.length, 1);
  }

  get compress_ratio(): number {
    const { raw, packed } = this.#compressed;
    return raw === 0 ? 1 : Math.min(packed / raw, 1);
  }

  /** How many bytes of all memory differ from what they were, as far as these pages show. */
  async changed(): Promise<ChangedBytes> {
    const elapsed_ms = this.age_ms;
    const share = (await countChanged(this.#sample)) / Math.max(this.#sample.length, 1);
    return { elapsed_ms, bytes: Math.round(share * this.present_bytes) };
  }

  close(): void {
    for (const memory of this.#opened.splice(0)) memory.close();
  }

  async #read(
    spaces: readonly { memory: ProcessMemory; present: PageRange[] }[],
    compress: boolean,
    signal: AbortSignal,
  ): Promise<void> {
    const total = spaces.reduce((sum, space) => sum + countPages(space.present), 0);
    this.present_bytes = total * PAGE_BYTES;
    this.#began_ms = performance.now();
    const zero = Buffer.alloc(PAGE_BYTES);
    const kept = Buffer.allocUnsafe((SAMPLE_PAGES + spaces.length) * PAGE_BYTES);
    const sample = this.#sample;
    for (const { memory, present } of spaces) {
      for (const page of spread(present, Math.ceil((SAMPLE_PAGES * countPages(present)) / Math.max(total, 1)))) {
        const content = kept.subarray(sample.length * PAGE_BYTES, (sample.length + 1) * PAGE_BYTES);
        if (memory.read(page, 1, content) !== 1) continue;
        if (content.equals(zero)) this.#zeroes += 1;
        else if (compress && sample.length % COMPRESSED_EVERY === 0) {
          this.#compressed.raw += PAGE_BYTES;
          this.#compressed.packed += deflateRawSync(content).length;
        }
        sample.push({ memory, page, content });
        if (sample.length % TURN_PAGES !== 0) continue;
        await setImmediate();
        signal.throwIfAborted();
      }
    }
  }
}

async function countChanged(sample: readonly Sampled[]): Promise<number> {
  const now = Buffer.alloc(PAGE_BYTES);
  let count = 0;
  for (const [index, { memory, page, content }] of sample.entries()) {
    if (memory.read(page, 1, now) !== 1 || !now.equals(content)) count += 1;
    if (index % TURN_PAGES === 0) await setImmediate();
  }
  return count;
}

/** `wanted` pages at even distances over all of the ranges. */
function* spread(ranges: readonly PageRange[], wanted: number): Generator<number> {
  const total = countPages(ranges);
  const step = Math.max(total / Math.max(wanted, 1), 1);
  let next = step / 2;
  let passed = 0;
  for (const { first, count } of ranges) {
    for (; next < passed + count; next += step) yield first + Math.floor(next - passed);
    passed += count;
  }
}
