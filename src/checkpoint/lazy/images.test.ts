import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { array, assert, constantFrom, integer, property, record } from 'fast-check';
import { describe, expect, it } from 'vitest';
import { PAGE_BYTES } from '#src/transfer/pages/model.ts';
import { parsePagemap, writePagemap } from './images.ts';
import { lazyContents, materialise } from './pagemap.ts';
import { PE_LAZY, PE_PRESENT } from './protocol.ts';

const entry = record({
  first: integer({ min: 0, max: 2 ** 35 }),
  count: integer({ min: 1, max: 2 ** 31 }),
  flags: constantFrom(PE_LAZY, PE_PRESENT, PE_LAZY | PE_PRESENT),
});

describe('pagemap images', () => {
  it('are read as they were written', () => {
    assert(
      property(integer({ min: 1, max: 2 ** 32 - 1 }), array(entry), (pagesId, entries) => {
        expect(parsePagemap(writePagemap({ pagesId, entries }), 'x')).toEqual({ pagesId, entries });
      }),
    );
  });
  it('are read in the forms of older versions', () => {
    // One message each: pages_id 1; vaddr 0x3000, compat_nr_pages 2, in_parent 1; vaddr 0x5000, compat_nr_pages 1.
    const messages = ['02000000 0801', '07000000 08806010021801', '06000000 0880a0011001'];
    const bytes = Buffer.from(['1943565425400856', ...messages].join('').replaceAll(' ', ''), 'hex');
    expect(parsePagemap(bytes, 'x').entries).toEqual([
      { first: 3, count: 2, flags: 1 },
      { first: 5, count: 1, flags: PE_PRESENT },
    ]);
  });
  it('are refused when cut or altered', () => {
    const bytes = writePagemap({ pagesId: 1, entries: [{ first: 5, count: 1, flags: 2 }] });
    for (let length = 0; length < bytes.length; length += 1) {
      try {
        expect(parsePagemap(bytes.subarray(0, length), 'x').entries).toEqual([]);
      } catch (error) {
        expect(error).toMatchObject({ code: 'UMS_E_IMAGE_CORRUPT' });
      }
    }
    expect(() => parsePagemap(Buffer.alloc(100), 'x')).toThrow('no pagemap');
  });
});

async function inDirectory(work: (directory: string) => Promise<void>): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'ums-pagemap-'));
  try {
    await work(directory);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

const NOTHING = (): void => undefined;
const page = (text: string): Buffer => Buffer.alloc(PAGE_BYTES, text);

describe('the images of a lazy dump', () => {
  const entries = [
    { first: 10, count: 2, flags: PE_LAZY },
    { first: 12, count: 1, flags: PE_PRESENT },
    { first: 13, count: 300, flags: PE_LAZY },
    { first: 500, count: 1, flags: PE_PRESENT },
  ];

  it('say what they lack, and become whole, also when begun again', () =>
    inDirectory(async (directory) => {
      const pagemap = join(directory, 'pagemap-7.img');
      const lazy = writePagemap({ pagesId: 1, entries });
      await writeFile(pagemap, lazy);
      await writeFile(join(directory, 'pagemap-shmem-7.img'), 'not of a process');
      await writeFile(join(directory, 'pages-1.img'), Buffer.concat([page('p'), page('q')]));
      expect(await lazyContents(directory)).toEqual([
        {
          name: 'process:7',
          ranges: [
            { first: 10, count: 2 },
            { first: 13, count: 300 },
          ],
        },
      ]);
      const source = {
        read: (_name: string, first: number, target: Buffer) => {
          for (let at = 0; at * PAGE_BYTES < target.length; at += 1) {
            target.fill(first + at === 11 ? 0 : (first + at) & 255, at * PAGE_BYTES, (at + 1) * PAGE_BYTES);
          }
        },
      };
      const whole = Buffer.concat([
        page('\u000a'),
        page('\0'),
        page('p'),
        ...Array.from({ length: 300 }, (_, at) => Buffer.alloc(PAGE_BYTES, (13 + at) & 255)),
        page('q'),
      ]);
      await materialise(directory, source);
      expect((await readFile(join(directory, 'pages-1.img'))).equals(whole)).toBe(true);
      expect(parsePagemap(await readFile(pagemap), 'x').entries.map(({ flags }) => flags)).toEqual(
        entries.map(() => PE_PRESENT),
      );
      expect(await lazyContents(directory)).toEqual([]);
      // Killed between the two renames: the pages are new, the pagemap is not.
      await writeFile(pagemap, lazy);
      await materialise(directory, source);
      expect((await readFile(join(directory, 'pages-1.img'))).equals(whole)).toBe(true);
      expect(await lazyContents(directory)).toEqual([]);
    }));

  it('are refused when pages are missing', () =>
    inDirectory(async (directory) => {
      await writeFile(join(directory, 'pagemap-7.img'), writePagemap({ pagesId: 1, entries }));
      await writeFile(join(directory, 'pages-1.img'), page('p'));
      await expect(materialise(directory, { read: NOTHING })).rejects.toMatchObject({ code: 'UMS_E_IMAGE_CORRUPT' });
    }));
});
