import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  intersectRanges,
  normaliseRanges,
  PAGE_BYTES,
  type PageRange,
  type SpaceContents,
} from '#src/transfer/pages/model.ts';
import { isMissing } from '#src/transfer/pages/store-files.ts';
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
  const others = new Map(argumentPages(imagesDir, contents).map(({ name, ranges }) => [name, ranges]));
  return contents
    .map(({ name, ranges }) => ({
      name,
      ranges: normaliseRanges([...intersectRanges(ranges, wanted), ...(others.get(name) ?? [])]),
    }))
    .filter(({ ranges }) => ranges.length > 0);
}

/** mm_arg_start to mm_env_end in an mm_entry (images/mm.proto): the numbers of the fields with both ends of each area. */
const AREAS: readonly (readonly [start: number, end: number])[] = [
  [8, 9],
  [10, 11],
];
/** The kernel takes no more at an exec (execve(2)); a process may claim more with prctl(2), but nobody has to wait for that. */
const AREA_PAGES_MAX = 512;

/**
 * Pages with the arguments and the environment of each process, as far as the dump left them out. They must be there before
 * the first instruction: who reads /proc/PID/cmdline or environ, the process itself or a health check beside it, does not
 * wait for a page that is missing but is told that there is nothing (fs/userfaultfd.c: a fault that cannot be retried).
 */
export function argumentPages(imagesDir: string, contents: readonly SpaceContents[]): SpaceContents[] {
  return contents.flatMap(({ name, ranges }) => {
    const image = readOrNothing(join(imagesDir, `mm-${name.slice('process:'.length)}.img`));
    const found = intersectRanges(ranges, normaliseRanges(areasOf(image)));
    return found.length === 0 ? [] : [{ name, ranges: found }];
  });
}

export function areasOf(image: Buffer): PageRange[] {
  return fromMessage(image, (whole) =>
    AREAS.flatMap(([startField, endField]) => {
      const [start = 0] = valuesAt(image, whole, [startField]);
      const [end = 0] = valuesAt(image, whole, [endField]);
      if (start >= end) return [];
      const first = pageOf(start);
      return [{ first, count: Math.min(pageOf(end - 1) - first + 1, AREA_PAGES_MAX) }];
    }),
  );
}

/** A process that has ended, and has not been waited for, has no memory. */
function readOrNothing(path: string): Buffer {
  try {
    return readFileSync(path);
  } catch (error) {
    if (isMissing(error)) return Buffer.alloc(0);
    throw error;
  }
}

export function pagesOfThread(image: Buffer): number[] {
  return fromMessage(image, (whole) => {
    const own = ADDRESSES.flatMap((path) => valuesAt(image, whole, path)).map(pageOf);
    const above = STACKS.flatMap((path) => valuesAt(image, whole, path)).map((pointer) => pageOf(pointer) + 1);
    return [...own, ...above].filter((page) => page > 1);
  });
}

/** What is read of the message in an image of CRIU's; nothing where it is none. */
function fromMessage<T>(image: Buffer, read: (whole: Field) => T[]): T[] {
  if (image.length < HEAD_BYTES) return [];
  const whole: Field = { number: 0, wire: 2, at: 0, from: HEAD_BYTES, to: HEAD_BYTES + image.readUInt32LE(8) };
  try {
    return read(whole);
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
