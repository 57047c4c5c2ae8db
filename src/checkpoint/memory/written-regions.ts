import { PAGE_BYTES, type PageRange } from '#src/transfer/pages/model.ts';
import type { Mapping } from './model.ts';
import { RangeCollector } from './pagemap.ts';

/** What written.pl is asked and answers; the format is at the top of it. */

const REGION_BYTES = 24;
const WRITTEN = 2;
/** Below lies nothing (vm.mmap_min_addr), above the kernel's own or what nobody maps without asking for it. */
const LOWEST_PAGE = 16;
const HIGHEST_PAGE = 0x7fff_ffff_f000 / PAGE_BYTES;

export interface Findings {
  /** First pages of mappings that cannot be tracked: their pages count as written. */
  readonly odd: readonly number[];
  readonly written: PageRange[];
  /** Of a round: all pages. Of the final: those not written. */
  readonly others: PageRange[];
}

/**
 * Mappings that stand together, with the room around them: up to the next mapping that is not to be tracked. One that
 * grows into that room meanwhile is then tracked as a whole; if it were cut in two, the program could not resize it any
 * more (mremap). `odd` ones stand alone, with nothing around.
 */
export function spansOf(mappings: readonly Mapping[], odd: ReadonlySet<number>): number[] {
  const words: number[] = [];
  let group: Mapping[] = [];
  let low = LOWEST_PAGE;
  const close = (high: number) => {
    const [first, last] = [group[0], group.at(-1)];
    if (first !== undefined && last !== undefined) {
      const end = Math.max(high, last.first + last.count);
      words.push(Math.min(low, first.first) * PAGE_BYTES, end * PAGE_BYTES, group.length, ...bounds(group));
    }
    group = [];
  };
  for (const mapping of mappings) {
    if (mapping.lazy && !odd.has(mapping.first)) {
      group.push(mapping);
      continue;
    }
    close(mapping.first);
    low = mapping.first + mapping.count;
    if (mapping.lazy) words.push(...bounds([mapping]), 1, ...bounds([mapping]));
  }
  close(HIGHEST_PAGE);
  return words;
}

function bounds(mappings: readonly Mapping[]): number[] {
  return mappings.flatMap(({ first, count }) => [first * PAGE_BYTES, (first + count) * PAGE_BYTES]);
}

export function parseFindings(payload: Buffer): Findings {
  const [odd = 0, written = 0, others = 0] = [0, 4, 8].map((at) => payload.readUInt32LE(at));
  const regions = 16 + 8 * odd;
  const middle = regions + written * REGION_BYTES;
  return {
    odd: Array.from({ length: odd }, (_, index) => pageAt(payload, 16 + 8 * index)),
    ...sortRegions(payload.subarray(regions, middle), payload.subarray(middle, middle + others * REGION_BYTES)),
  };
}

/** In a round, pages of all kinds follow those written; in the final there is one list, in which each says what it is. */
function sortRegions(first: Buffer, second: Buffer): { written: PageRange[]; others: PageRange[] } {
  const written = new RangeCollector();
  const others = new RangeCollector();
  for (const regions of [first, second]) {
    for (let at = 0; at < regions.length; at += REGION_BYTES) {
      const start = pageAt(regions, at);
      const into = regions[at + 16] === WRITTEN ? written : others;
      into.add(start, pageAt(regions, at + 8) - start);
    }
  }
  return { written: written.finish(), others: others.finish() };
}

function pageAt(bytes: Buffer, at: number): number {
  return (bytes.readUInt32LE(at + 4) * 2 ** 32 + bytes.readUInt32LE(at)) / PAGE_BYTES;
}
