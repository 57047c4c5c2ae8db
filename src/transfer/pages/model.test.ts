import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  countPages,
  intersectRanges,
  normaliseRanges,
  type PageRange,
  pageRangeSchema,
  PAGES_MAX,
  spaceNameSchema,
  subtractRanges,
} from './model.ts';

const ranges = fc.array(fc.record({ first: fc.integer({ min: 0, max: 60 }), count: fc.integer({ min: 0, max: 12 }) }), {
  maxLength: 12,
});

function pagesOf(list: readonly PageRange[]): Set<number> {
  return new Set(list.flatMap(({ first, count }) => Array.from({ length: count }, (_, at) => first + at)));
}

describe('ranges of pages', () => {
  it('are sets: join, subtraction and intersection agree with sets of numbers', () => {
    fc.assert(
      fc.property(ranges, ranges, (left, right) => {
        const a = normaliseRanges(left);
        const b = normaliseRanges(right);
        const setA = pagesOf(left);
        const setB = pagesOf(right);
        expect(pagesOf(a)).toEqual(setA);
        expect(countPages(a)).toBe(setA.size);
        expect(pagesOf(subtractRanges(a, b))).toEqual(new Set([...setA].filter((page) => !setB.has(page))));
        expect(pagesOf(intersectRanges(a, b))).toEqual(new Set([...setA].filter((page) => setB.has(page))));
        for (const list of [a, subtractRanges(a, b), intersectRanges(a, b)])
          expect(normaliseRanges(list)).toEqual(list);
      }),
    );
  });

  it('are bounded', () => {
    expect(pageRangeSchema.safeParse({ first: PAGES_MAX - 1, count: 1 }).success).toBe(true);
    expect(pageRangeSchema.safeParse({ first: PAGES_MAX - 1, count: 2 }).success).toBe(false);
    expect(pageRangeSchema.safeParse({ first: -1, count: 1 }).success).toBe(false);
    expect(pageRangeSchema.safeParse({ first: 0.5, count: 1 }).success).toBe(false);
  });
});

describe('names of spaces', () => {
  it('cannot leave a directory', () => {
    for (const good of ['process:1', 'process:4294967295', 'image:pages-1.img', 'image:shmem-12']) {
      expect(spaceNameSchema.safeParse(good).success).toBe(true);
    }
    for (const bad of [
      'process:0',
      'process:-1',
      'process:',
      'image:../x',
      'image:a/b',
      'image:',
      'other:1',
      'process:1\n',
    ]) {
      expect(spaceNameSchema.safeParse(bad).success).toBe(false);
    }
  });
});
