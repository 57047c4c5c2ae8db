import type { UmsError } from '#src/telemetry/errors.ts';
import type { BuiltFrame } from './builder.ts';
import { CONFIRM_PAGES_MAX, encodeConfirm } from './apply.ts';
import { blake3Of } from './digest.ts';
import { encodeRanges, type FrameParts } from './frames.ts';
import {
  countPages,
  PAGE_BYTES,
  type PageRange,
  type PageReader,
  type SendMode,
  type SendReport,
  type SpaceName,
} from './model.ts';
import type { PageBytes } from './page-table.ts';
import type { RangeCursor } from './ranges.ts';
import type { UnderWay } from './sender-link.ts';

export interface SenderSpace {
  readonly id: number;
  readonly name: SpaceName;
  /** Undefined when the process vanished. */
  reader: PageReader | undefined;
  /** What is known of each page's way as a final page (`Sent`). */
  readonly sent: PageBytes;
  /** What a round should have sent and did not: of these the receiver may hold what they were before. */
  leftOut: PageRange[];
}

/** One call of `send`, until every frame of it was acknowledged. */
export class Job {
  readonly mode: SendMode;
  readonly done: Promise<SendReport>;
  readonly #done = Promise.withResolvers<SendReport>();
  readonly #began = performance.now();
  /** Pieces not yet exhausted and frames not yet acknowledged. */
  #open = 0;
  pages = 0;
  absent_pages = 0;
  zero_pages = 0;
  reference_pages = 0;
  data_bytes = 0;
  compressed_bytes = 0;
  wire_bytes = 0;

  constructor(mode: SendMode) {
    this.mode = mode;
    this.done = this.#done.promise;
  }

  opened(): void {
    this.#open += 1;
  }

  closed(): void {
    this.#open -= 1;
    if (this.#open === 0) this.#done.resolve(this.#report());
  }

  failed(error: UmsError): void {
    this.#done.reject(error);
  }

  built(frame: BuiltFrame, bytes: number): void {
    this.pages += frame.pages;
    this.zero_pages += frame.zero_pages;
    this.reference_pages += frame.reference_pages;
    this.data_bytes += frame.raw_bytes;
    this.compressed_bytes += frame.payload.length;
    this.wire_bytes += bytes;
  }

  #report(): SendReport {
    return {
      pages: this.pages,
      absent_pages: this.absent_pages,
      zero_bytes: this.zero_pages * PAGE_BYTES,
      reference_bytes: this.reference_pages * PAGE_BYTES,
      data_bytes: this.data_bytes,
      compressed_bytes: this.compressed_bytes,
      wire_bytes: this.wire_bytes,
      elapsed_ms: performance.now() - this.#began,
    };
  }
}

/** Pages that are still to be sent. */
export interface Piece {
  readonly job: Job;
  readonly space: SenderSpace;
  readonly cursor: RangeCursor;
  readonly urgent: boolean;
  /** As they are: they were refused before. */
  readonly raw: boolean;
  readonly attempts: number;
}

/** A frame that the receiver answers with the pages that it lacks. */
export class Request implements UnderWay {
  readonly space: SenderSpace | undefined;
  readonly answered: Promise<void>;
  /** What the receiver lacks, by the number of the space that the answer names. */
  readonly missing: { space: number; ranges: PageRange[] }[] = [];
  bytes = 0;
  /** The connection that it went over, and goes over again. */
  link = 0;
  readonly #make: () => Omit<FrameParts, 'digest'> | undefined;
  readonly #again: (request: Request) => void;
  readonly #answered = Promise.withResolvers<void>();

  constructor(
    space: SenderSpace | undefined,
    make: () => Omit<FrameParts, 'digest'> | undefined,
    again: (request: Request) => void,
  ) {
    this.space = space;
    this.answered = this.#answered.promise;
    this.#make = make;
    this.#again = again;
    // Whoever asked may have stopped waiting because another of its requests failed.
    this.answered.catch(() => undefined);
  }

  /** The frame; undefined when there turns out to be nothing to ask. */
  make(): Omit<FrameParts, 'digest'> | undefined {
    this.missing.length = 0;
    const parts = this.#make();
    this.bytes = parts?.meta?.length ?? 0;
    return parts;
  }

  lacks(space: number, ranges: PageRange[]): void {
    this.missing.push({ space, ranges });
  }

  get lacking(): PageRange[] {
    return this.missing.flatMap(({ ranges }) => ranges);
  }

  arrived(): void {
    this.#answered.resolve();
  }

  again(): void {
    this.#again(this);
  }

  failed(error: UmsError): void {
    this.#answered.reject(error);
  }
}

const block = Buffer.allocUnsafeSlow(256 * PAGE_BYTES);

/** The digests of blocks of pages as they are now. Blocks that cannot be read go to `unreadable` instead. */
export function makeConfirm(
  space: SenderSpace,
  blocks: readonly (readonly PageRange[])[],
  blockPages: number,
  unreadable: PageRange[],
): Omit<FrameParts, 'digest'> | undefined {
  const ranges: PageRange[] = [];
  const digests: Buffer[] = [];
  unreadable.length = 0;
  for (const parts of blocks) {
    const content = readBlock(space.reader, parts);
    if (content === undefined) unreadable.push(...parts);
    else {
      ranges.push(...parts);
      digests.push(blake3Of(content));
    }
  }
  if (ranges.length === 0) return undefined;
  const meta = encodeConfirm(encodeRanges(ranges), Buffer.concat(digests));
  return { type: 'confirm', space: space.id, meta, argument: blockPages };
}

function readBlock(reader: PageReader | undefined, parts: readonly PageRange[]): Buffer | undefined {
  if (reader === undefined) return undefined;
  let at = 0;
  for (const { first, count } of parts) {
    const target = block.subarray(at, at + count * PAGE_BYTES);
    if (reader.read(first, count, target) < count) return undefined;
    at += target.length;
  }
  return block.subarray(0, at);
}

/** Ranges in lists that one frame each can compare: whole blocks but for the very last. */
export function confirmLists(ranges: readonly PageRange[], blockPages: number): PageRange[][] {
  const most = Math.floor(CONFIRM_PAGES_MAX / blockPages) * blockPages;
  const lists: PageRange[][] = [];
  let list: PageRange[] = [];
  let room = most;
  for (const range of ranges) {
    for (let first = range.first, left = range.count; left > 0; ) {
      const count = Math.min(left, room);
      list.push({ first, count });
      first += count;
      left -= count;
      room -= count;
      if (room > 0) continue;
      lists.push(list);
      list = [];
      room = most;
    }
  }
  if (countPages(list) > 0) lists.push(list);
  return lists;
}
