import { expect, test } from 'vitest';
import { ArchivedContent } from './archived-content.ts';
import { digestOf } from './blocks.ts';

const BLOCK = 65_536;

function follow(size: number, parts: readonly number[], data: Buffer) {
  const content = new ArchivedContent(BigInt(size), true);
  const map = Buffer.alloc(512);
  map.write(`${parts.length / 2}\n${parts.join('\n')}\n`);
  const all = Buffer.concat([map, data]);
  for (let at = 0; at < all.length; at += 1000) content.push(all.subarray(at, at + 1000));
  return content.finish();
}

test('holes are digested as zeros', () => {
  const blocks = follow(3 * BLOCK, [BLOCK, 512, 3 * BLOCK, 0], Buffer.alloc(512, 'x'));
  const middle = Buffer.alloc(BLOCK);
  middle.fill('x', 0, 512);
  const digests = [Buffer.alloc(BLOCK), middle, Buffer.alloc(BLOCK)].map(digestOf);
  expect(digests.map((digest, block) => blocks?.isAt(block, digest))).toEqual([true, true, true]);
});

test.each([
  ['beyond the end, in its last block', 3 * BLOCK - 100, [0, 3 * BLOCK, 3 * BLOCK - 100, 0], 3 * BLOCK],
  ['far beyond the end', BLOCK, [0, 5 * BLOCK, BLOCK, 0], 5 * BLOCK],
  ['that share a block', 2 * BLOCK, [0, 5, 5, BLOCK], BLOCK + 512],
])('of a file with parts %s nothing is known', (_, size, parts, bytes) => {
  expect(follow(size, parts, Buffer.alloc(bytes, 'x'))).toBeUndefined();
});
