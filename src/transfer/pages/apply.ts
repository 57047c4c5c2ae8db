import { decompress } from './compress.ts';
import { blake3Of, DIGEST_BYTES } from './digest.ts';
import { CACHE_SPACE, CONTENT_MAX_BYTES, decodeRanges, eachRun, Flag, type Frame, RunKind } from './frames.ts';
import { PAGE_BYTES, type PageRange, pagesFailed, type SpaceName } from './model.ts';
import type { PageStore } from './store.ts';

/** What frames do to the store. Nothing is written before the digest of the whole frame was found right. */

const assembled = Buffer.allocUnsafeSlow(CONTENT_MAX_BYTES);
type Final = (name: SpaceName, range: PageRange) => void;

/** Stores the pages of a data frame; false when they are not what was sent, so that they must be sent again. */
export function applyData(
  store: PageStore,
  name: SpaceName,
  names: ReadonlyMap<number, SpaceName>,
  frame: Frame,
  tellFinal: Final | undefined,
): boolean {
  const payload = decompress(frame.encoding, frame.payload, frame.raw_bytes);
  if (payload === undefined) return false;
  let dataPages = 0;
  let references = 0;
  eachRun(frame.meta, (run) => {
    if (run.kind === RunKind.data) dataPages += run.count;
    if (run.kind === RunKind.reference) references += run.count;
  });
  if (dataPages * PAGE_BYTES !== frame.raw_bytes) throw pagesFailed('a frame has more or fewer pages than it says');
  if ((dataPages + references) * PAGE_BYTES > CONTENT_MAX_BYTES) throw pagesFailed('a frame has too many pages');
  const content = references === 0 ? payload : lookUp(store, names, frame.meta, payload);
  if (content === undefined || !blake3Of(frame.meta, content).equals(frame.digest)) return false;
  const final = (frame.flags & Flag.final) !== 0;
  let at = 0;
  eachRun(frame.meta, ({ kind, first, count }) => {
    if (kind === RunKind.zero) store.zero(name, first, count, final);
    else {
      store.write(name, first, content.subarray(at, at + count * PAGE_BYTES), final);
      at += count * PAGE_BYTES;
    }
    tellFinal?.(name, { first, count });
  });
  return true;
}

/** The frame's content with references replaced by what they name; undefined when something named is not here. */
function lookUp(
  store: PageStore,
  names: ReadonlyMap<number, SpaceName>,
  meta: Buffer,
  payload: Buffer,
): Buffer | undefined {
  let at = 0;
  let taken = 0;
  let whole = true;
  eachRun(meta, ({ kind, count, space, reference }) => {
    if (kind === RunKind.zero) return;
    const target = assembled.subarray(at, at + count * PAGE_BYTES);
    at += target.length;
    if (kind === RunKind.data) {
      payload.copy(target, 0, taken, taken + target.length);
      taken += target.length;
    } else if (space === CACHE_SPACE) {
      if (store.cache === undefined || reference + count > store.cache.pages) whole = false;
      else store.cache.read(reference, target);
    } else {
      const source = names.get(space);
      if (source === undefined || !store.holds(source, reference, count)) whole = false;
      else store.read(source, reference, target);
    }
  });
  return whole ? assembled.subarray(0, at) : undefined;
}

/** So many pages may be compared in one frame: they are read and hashed in one go. */
export const CONFIRM_PAGES_MAX = 2048;
export const CONFIRM_BLOCK_PAGES_MAX = 256;

export function encodeConfirm(ranges: Buffer, digests: Buffer): Buffer {
  const head = Buffer.alloc(8);
  head.writeUInt32LE(ranges.length, 0);
  return Buffer.concat([head, ranges, digests]);
}

/** Marks blocks of pages final whose content has the digest that the source says; returns the others. */
export function applyConfirm(store: PageStore, name: SpaceName, frame: Frame, tellFinal: Final): PageRange[] {
  const rangesEnd = frame.meta.length < 8 ? Number.POSITIVE_INFINITY : 8 + frame.meta.readUInt32LE(0);
  const blockPages = frame.argument;
  if (rangesEnd > frame.meta.length || blockPages < 1 || blockPages > CONFIRM_BLOCK_PAGES_MAX) {
    throw pagesFailed('a comparison of pages is malformed');
  }
  const ranges = decodeRanges(frame.meta.subarray(8, rangesEnd));
  const digests = frame.meta.subarray(rangesEnd);
  const blocks = blocksOf(ranges, blockPages);
  if (digests.length !== blocks.length * DIGEST_BYTES) throw pagesFailed('a comparison of pages lacks digests');
  const differing: PageRange[] = [];
  for (const [index, block] of blocks.entries()) {
    const digest = digests.subarray(index * DIGEST_BYTES, (index + 1) * DIGEST_BYTES);
    if (holdsBlock(store, name, block, digest)) {
      store.markFinal(name, block);
      for (const range of block) tellFinal(name, range);
    } else differing.push(...block);
  }
  return differing;
}

function holdsBlock(store: PageStore, name: SpaceName, block: readonly PageRange[], digest: Buffer): boolean {
  let at = 0;
  for (const { first, count } of block) {
    if (!store.holds(name, first, count)) return false;
    store.read(name, first, assembled.subarray(at, at + count * PAGE_BYTES));
    at += count * PAGE_BYTES;
  }
  return blake3Of(assembled.subarray(0, at)).equals(digest);
}

/** Cuts ranges, as one sequence of pages, into blocks of so many pages. */
export function blocksOf(ranges: readonly PageRange[], blockPages: number): PageRange[][] {
  const blocks: PageRange[][] = [];
  let block: PageRange[] = [];
  let room = blockPages;
  let pages = 0;
  for (const range of ranges) {
    pages += range.count;
    if (pages > CONFIRM_PAGES_MAX) throw pagesFailed('a comparison of pages is too long');
    for (let first = range.first, left = range.count; left > 0; ) {
      const count = Math.min(left, room);
      block.push({ first, count });
      first += count;
      left -= count;
      room -= count;
      if (room > 0) continue;
      blocks.push(block);
      block = [];
      room = blockPages;
    }
  }
  if (block.length > 0) blocks.push(block);
  return blocks;
}
