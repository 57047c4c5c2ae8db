import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { intersectRanges, normaliseRanges, PAGE_BYTES, type SpaceContents } from '#src/transfer/pages/model.ts';
import { type Field, fieldsOf, numberAt } from './protobuf.ts';

/** CRIU's image of a thread: two magic numbers, the length of a message, the message (images/core.proto). */
const CORE_IMAGE = /^core-\d+\.img$/;
const HEAD_BYTES = 12;
const THREADS_MAX = 64;
/** Addresses in a core_entry, by the numbers of the fields on the way to them. */
const ADDRESSES: readonly (readonly number[])[] = [
  // thread_core, rseq_entry, rseq_abi_pointer: the kernel writes there when the thread is told of its processor.
  [5, 15, 1],
  // The thread's own data: thread_info, gpregs, fs_base on x86, ti_aarch64, tls on arm.
  [2, 2, 22],
  [8, 2],
];
/** thread_info, gpregs, sp on x86, and gpregs, sp on arm. CRIU carries the page itself; the callers' frames follow it. */
const STACKS: readonly (readonly number[])[] = [
  [2, 2, 20],
  [8, 3, 2],
];

/**
 * Pages that are touched while the processes are made or right after: what the kernel writes for each thread, the
 * thread's own data and its callers' frames. Each would cost a round trip otherwise, while the service stands still.
 * `contents` are the pages that the dump left out. Only a hint: what is not found, or not understood, is fetched when it is touched.
 */
export function firstTouched(imagesDir: string, contents: readonly SpaceContents[]): SpaceContents[] {
  const pages: number[] = [];
  for (const name of readdirSync(imagesDir)
    .filter((each) => CORE_IMAGE.test(each))
    .slice(0, THREADS_MAX)) {
    pages.push(...pagesOfThread(readFileSync(join(imagesDir, name))));
  }
  const wanted = normaliseRanges(pages.map((first) => ({ first, count: 1 })));
  return contents
    .map(({ name, ranges }) => ({ name, ranges: intersectRanges(ranges, wanted) }))
    .filter(({ ranges }) => ranges.length > 0);
}

export function pagesOfThread(image: Buffer): number[] {
  if (image.length < HEAD_BYTES) return [];
  const whole: Field = { number: 0, wire: 2, at: 0, from: HEAD_BYTES, to: HEAD_BYTES + image.readUInt32LE(8) };
  try {
    const own = ADDRESSES.flatMap((path) => valuesAt(image, whole, path)).map(pageOf);
    const above = STACKS.flatMap((path) => valuesAt(image, whole, path)).map((pointer) => pageOf(pointer) + 1);
    return [...own, ...above].filter((page) => page > 1);
  } catch (error) {
    if (error === ODD) return [];
    throw error;
  }
}

const ODD = new Error('not a message');

function valuesAt(image: Buffer, message: Field, [number, ...rest]: readonly number[]): number[] {
  const fields = fieldsOf(image, message.from, message.to, () => ODD).filter((field) => field.number === number);
  if (rest.length === 0) return fields.filter(({ wire }) => wire === 0).map((field) => numberAt(image, field));
  return fields.filter(({ wire }) => wire === 2).flatMap((field) => valuesAt(image, field, rest));
}

function pageOf(address: number): number {
  return Math.floor(address / PAGE_BYTES);
}
