import { closeSync, fstatSync, ftruncateSync, openSync, readSync, statSync, writeSync } from 'node:fs';
import { readdir, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  countPages,
  normaliseRanges,
  PAGE_BYTES,
  type SpaceContents,
  type SpaceName,
} from '#src/transfer/pages/model.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { type PagemapEntry, readPagemap, writePagemap } from './images.ts';
import { PE_LAZY, PE_PARENT, PE_PRESENT } from './protocol.ts';

const PROCESS_PAGEMAP = /^pagemap-([1-9]\d{0,9})\.img$/;
const CHUNK_PAGES = 256;

/** Where the content of lazy pages is: pages that were never stored read as zeros. */
export interface PageSource {
  read(name: SpaceName, first: number, target: Buffer): void;
}

/** The pages that a lazy dump left out, by process: what must be final before everything of the service is there. */
export async function lazyContents(imagesDir: string): Promise<SpaceContents[]> {
  const contents: SpaceContents[] = [];
  for (const pid of await processesOf(imagesDir)) {
    const { entries } = await readPagemap(join(imagesDir, `pagemap-${pid}.img`));
    const ranges = normaliseRanges(entries.filter((entry) => (entry.flags & PE_LAZY) !== 0));
    if (ranges.length > 0) contents.push({ name: `process:${pid}`, ranges });
  }
  return contents;
}

async function processesOf(imagesDir: string): Promise<number[]> {
  const names = await readdir(imagesDir);
  return names
    .map((name) => Number(PROCESS_PAGEMAP.exec(name)?.[1]))
    .filter((pid) => !Number.isNaN(pid))
    .toSorted((a, b) => a - b);
}

/**
 * Makes the images of a lazy dump into those of an ordinary one, for a restore where the kernel has no userfaultfd. Each
 * pages image is written anew beside the old one and takes its place; the pagemap, which says what is in it, last.
 */
export async function materialise(imagesDir: string, source: PageSource): Promise<void> {
  for (const pid of await processesOf(imagesDir)) {
    const path = join(imagesDir, `pagemap-${pid}.img`);
    const pagemap = await readPagemap(path);
    if (!pagemap.entries.some((entry) => (entry.flags & PE_LAZY) !== 0)) continue;
    const pages = join(imagesDir, `pages-${pagemap.pagesId}.img`);
    const whole = isWhole(pages, pagemap.entries);
    if (!whole) {
      copyPages(pages, `${pages}.new`, pagemap.entries, (first, target) =>
        source.read(`process:${pid}`, first, target),
      );
      await rename(`${pages}.new`, pages);
    }
    const entries = pagemap.entries.map((entry) => ({ ...entry, flags: eagerFlags(entry) }));
    await writeFile(`${path}.new`, writePagemap({ pagesId: pagemap.pagesId, entries }), { mode: 0o600 });
    await rename(`${path}.new`, path);
  }
}

/** Whether an earlier attempt got as far as the pages: they are all there, although the pagemap calls some lazy. */
function isWhole(path: string, entries: readonly PagemapEntry[]): boolean {
  const own = entries.filter(({ flags }) => (flags & PE_PARENT) === 0);
  return statSync(path).size === countPages(own) * PAGE_BYTES;
}

function eagerFlags({ flags }: PagemapEntry): number {
  return (flags & PE_PARENT) !== 0 ? flags & ~PE_LAZY : PE_PRESENT;
}

/** The new image holds, in the pagemap's order, what the old one held and the lazy pages in between. */
function copyPages(
  from: string,
  to: string,
  entries: readonly PagemapEntry[],
  lazy: (first: number, target: Buffer) => void,
): void {
  const old = openSync(from, 'r');
  const made = openSync(to, 'w', 0o600);
  const buffer = Buffer.allocUnsafe(CHUNK_PAGES * PAGE_BYTES);
  let readAt = 0;
  let writeAt = 0;
  try {
    for (const { first, count, flags } of entries) {
      if ((flags & PE_PARENT) !== 0) continue;
      for (let done = 0; done < count; done += CHUNK_PAGES) {
        const part = buffer.subarray(0, Math.min(CHUNK_PAGES, count - done) * PAGE_BYTES);
        if ((flags & PE_PRESENT) === 0) {
          lazy(first + done, part);
        } else {
          readExactly(old, part, readAt, from);
          readAt += part.length;
        }
        writePart(made, part, writeAt);
        writeAt += part.length;
      }
    }
    if (fstatSync(old).size !== readAt) throw truncated(from);
    ftruncateSync(made, writeAt);
  } finally {
    closeSync(old);
    closeSync(made);
  }
}

const ZEROS = Buffer.alloc(CHUNK_PAGES * PAGE_BYTES);

/** Zeros become a hole, which costs no memory. */
function writePart(fd: number, part: Buffer, position: number): void {
  if (part.equals(ZEROS.subarray(0, part.length))) return;
  for (let done = 0; done < part.length; ) done += writeSync(fd, part, done, part.length - done, position + done);
}

function readExactly(fd: number, target: Buffer, position: number, path: string): void {
  for (let done = 0; done < target.length; ) {
    const read = readSync(fd, target, done, target.length - done, position + done);
    if (read === 0) throw truncated(path);
    done += read;
  }
}

function truncated(path: string): UmsError {
  return new UmsError('UMS_E_IMAGE_CORRUPT', {
    message: `A checkpoint image is truncated or altered: ${path} does not hold the pages that its pagemap names.`,
    fault: 'destination',
    state: 'Nothing was restored from it.',
    mend: 'Try again; if it happens again, check the memory of the destination.',
  });
}
