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

/** What a short look at a running service says of its memory. */
export interface MemorySample {
  /** Bytes that a lazy restore can leave for later. */
  present_bytes: number;
  /** Share of them that are zero. */
  zero_share: number;
  /** Compressed size divided by size; 1 is incompressible. */
  compress_ratio: number;
  /** How many different bytes were written within each interval, by its length. */
  changed: { elapsed_ms: number; bytes: number }[];
}

interface Sampled {
  memory: ProcessMemory;
  page: number;
  /** What it held at the first look. */
  content: Buffer;
}

/**
 * Looks at some pages of every process now and a little later: which are zero, how they compress, and how many have
 * changed. It only reads, so it disturbs nothing and may be done for a check that touches nothing.
 */
export async function sampleMemory(pids: readonly number[], signal: AbortSignal): Promise<MemorySample> {
  const opened: ProcessMemory[] = [];
  try {
    const spaces: { memory: ProcessMemory; present: PageRange[] }[] = [];
    for (const pid of pids) {
      const memory = await ProcessMemory.open(pid);
      opened.push(memory);
      const lazy = normaliseRanges((await mappings(pid)).filter((mapping) => mapping.lazy));
      spaces.push({ memory, present: intersectRanges(normaliseRanges(await memory.present(lazy)), lazy) });
    }
    return await look(spaces, signal);
  } finally {
    for (const memory of opened) memory.close();
  }
}

async function look(
  spaces: readonly { memory: ProcessMemory; present: PageRange[] }[],
  signal: AbortSignal,
): Promise<MemorySample> {
  const total = spaces.reduce((sum, space) => sum + countPages(space.present), 0);
  const zero = Buffer.alloc(PAGE_BYTES);
  const kept = Buffer.allocUnsafe((SAMPLE_PAGES + spaces.length) * PAGE_BYTES);
  const sample: Sampled[] = [];
  let zeroes = 0;
  let compressed = { raw: 0, packed: 0 };
  const began = performance.now();
  for (const { memory, present } of spaces) {
    for (const page of spread(present, Math.ceil((SAMPLE_PAGES * countPages(present)) / Math.max(total, 1)))) {
      const content = kept.subarray(sample.length * PAGE_BYTES, (sample.length + 1) * PAGE_BYTES);
      if (memory.read(page, 1, content) !== 1) continue;
      if (content.equals(zero)) zeroes += 1;
      else if (sample.length % COMPRESSED_EVERY === 0) {
        compressed = { raw: compressed.raw + PAGE_BYTES, packed: compressed.packed + deflateRawSync(content).length };
      }
      sample.push({ memory, page, content });
      if (sample.length % TURN_PAGES === 0) await setImmediate();
    }
  }
  const changed: MemorySample['changed'] = [];
  for (const after_ms of LOOKS_MS) {
    await sleep(Math.max(after_ms - (performance.now() - began), 1), undefined, { signal });
    const elapsed_ms = performance.now() - began;
    const share = (await countChanged(sample)) / Math.max(sample.length, 1);
    changed.push({ elapsed_ms, bytes: Math.round(share * total * PAGE_BYTES) });
  }
  return {
    present_bytes: total * PAGE_BYTES,
    zero_share: zeroes / Math.max(sample.length, 1),
    compress_ratio: compressed.raw === 0 ? 1 : Math.min(compressed.packed / compressed.raw, 1),
    changed,
  };
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
