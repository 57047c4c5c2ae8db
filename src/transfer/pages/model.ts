import { z } from 'zod';
import { UmsError } from '#src/telemetry/errors.ts';

export const PAGE_BYTES = 4096;

/** Pages `first` to `first + count - 1`. A page's number is its virtual address (or offset) divided by PAGE_BYTES. */
export interface PageRange {
  readonly first: number;
  readonly count: number;
}

/**
 * A named set of pages: the memory of a process, by its pid inside the container (CRIU's id of it), or the pages of one
 * of CRIU's page images, numbered from 0.
 */
export type SpaceName = `process:${number}` | `image:${string}`;

/** One past the highest page number: the bytes of a space are then counted exactly by a JavaScript number. */
export const PAGES_MAX = 2 ** 41;
/** Spaces of one session. */
export const SPACES_MAX = 4000;

const SPACE_NAME = /^(process:[1-9]\d{0,9}|image:[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127})$/;

export function isSpaceName(value: string): value is SpaceName {
  return SPACE_NAME.test(value);
}

export const spaceNameSchema = z.string().max(160).refine(isSpaceName, 'no name of a space of pages');

export const pageRangeSchema = z
  .object({
    first: z
      .int()
      .min(0)
      .max(PAGES_MAX - 1),
    count: z.int().min(1).max(PAGES_MAX),
  })
  .refine((range) => range.first + range.count <= PAGES_MAX, 'a range beyond the highest page');

/** Where pages come from at the source. */
export interface PageReader {
  /**
   * Reads up to `count` pages from page `first` into `target`, synchronously; returns how many whole pages were read
   * from the start (fewer when the mapping ends or went away; 0 = nothing there).
   */
  read(first: number, count: number, target: Buffer): number;
}

/** live: as the page is now, while the service runs. final: the service is frozen, this is what it must become. */
export type SendMode = 'live' | 'final';

/** What a receiver has of a page. */
export type PageState = 'absent' | 'provisional' | 'final';

/** The list of pages that must be final in one space. */
export interface SpaceContents {
  readonly name: SpaceName;
  readonly ranges: readonly PageRange[];
}

/** What became of the pages of one `send`. Bytes are of memory, but for `wire_bytes`. */
export interface SendReport {
  readonly pages: number;
  /** Pages that were not there (any more) to be read. */
  readonly absent_pages: number;
  readonly zero_bytes: number;
  /** Named by what the receiver already holds. */
  readonly reference_bytes: number;
  /** Sent as content, before and after compression. */
  readonly data_bytes: number;
  readonly compressed_bytes: number;
  /** All that went to the connections, retransmissions and frame headers included. */
  readonly wire_bytes: number;
  readonly elapsed_ms: number;
}

export interface SenderStats {
  readonly pages: number;
  readonly zero_bytes: number;
  readonly reference_bytes: number;
  readonly data_bytes: number;
  readonly compressed_bytes: number;
  readonly wire_bytes: number;
  /** Pages confirmed or marked final without being sent. */
  readonly confirmed_bytes: number;
  /** Measured from acknowledgements; 0 until something was acknowledged. */
  readonly link_bytes_s: number;
  readonly rtt_ms: number;
  /** Compressed size divided by raw size of what was compressed or sampled last; 1 = incompressible. */
  readonly compressibility: number;
  readonly demands: number;
  readonly reconnects: number;
  readonly frames_resent: number;
  readonly frames_refused: number;
}

export interface ReceiverStatus {
  readonly pages: number;
  readonly final_pages: number;
  readonly received_bytes: number;
  readonly demands: number;
  readonly frames_refused: number;
  readonly connections: number;
  /** How many pages must be final, once the sender has said so. */
  readonly sealed_pages: number | undefined;
  readonly complete: boolean;
}

/** Sorted, without overlaps, neighbours joined. */
export function normaliseRanges(ranges: readonly PageRange[]): PageRange[] {
  const sorted = ranges.filter((range) => range.count > 0).toSorted((a, b) => a.first - b.first);
  const joined: { first: number; count: number }[] = [];
  for (const { first, count } of sorted) {
    const last = joined.at(-1);
    if (last === undefined || first > last.first + last.count) joined.push({ first, count });
    else last.count = Math.max(last.count, first + count - last.first);
  }
  return joined;
}

export function countPages(ranges: readonly PageRange[]): number {
  let pages = 0;
  for (const range of ranges) pages += range.count;
  return pages;
}

/** Pages of `ranges` that are not in `without`; both normalised. */
export function subtractRanges(ranges: readonly PageRange[], without: readonly PageRange[]): PageRange[] {
  const left: PageRange[] = [];
  let at = 0;
  for (const range of ranges) {
    let first = range.first;
    const end = range.first + range.count;
    while (at < without.length && endOf(without[at]) <= first) at += 1;
    for (let next = at; next < without.length; next += 1) {
      const hole = without[next];
      if (hole === undefined || hole.first >= end) break;
      if (hole.first > first) left.push({ first, count: hole.first - first });
      first = Math.max(first, hole.first + hole.count);
    }
    if (first < end) left.push({ first, count: end - first });
  }
  return left;
}

/** Pages that are in both; both normalised. */
export function intersectRanges(a: readonly PageRange[], b: readonly PageRange[]): PageRange[] {
  return subtractRanges(a, subtractRanges(a, b));
}

function endOf(range: PageRange | undefined): number {
  return range === undefined ? 0 : range.first + range.count;
}

/** What broke the page path, in words for a person. */
export function pagesFailed(reason: string, fault: 'network' | 'source' | 'destination' | 'ums' = 'network'): UmsError {
  return new UmsError('UMS_E_TRANSFER', {
    message: `Memory pages could not be transferred: ${reason}.`,
    fault,
    mend: 'Check the link between the systems (ums systems) and try again.',
  });
}
