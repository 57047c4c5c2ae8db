import { expect, test } from 'vitest';
import { archive, type Member } from './archive.test-support.ts';
import { ArchiveSieve } from './archive-sieve.ts';
import { TarParser } from './tar-parser.ts';

const RECORD = 512;
const KNOWN = new Set(['./a', './b', './c']);

function entries(...members: Member[]): Buffer {
  return archive(members, { ended: false });
}

/** A file with holes as tar stores it: `parts` are offsets and sizes, `stored` overrides how much it says to hold. */
function sparse(path: string, fileSize: number | bigint, parts: readonly (number | bigint)[], data: string): Member {
  const map = `${parts.length / 2}\n${parts.join('\n')}\n`;
  const content = map.padEnd(Math.ceil(map.length / RECORD) * RECORD, '\0') + data;
  const pax = { 'GNU.sparse.major': '1', 'GNU.sparse.name': path, 'GNU.sparse.realsize': `${fileSize}` };
  return { path: './GNUSparseFile.1/x', content, pax };
}

const a = sparse('./a', 4096 + 5, [0, 512, 4096, 5], 'A'.repeat(517));
const b: Member = { path: './b', content: 'b'.repeat(700) };
const c: Member = { path: './c', content: '' };
const zeros = (blocks: number): Buffer => Buffer.alloc(blocks * RECORD);
const data = (blocks: number): Buffer => Buffer.alloc(blocks * RECORD, 'data');

function sift(chunks: Iterable<Uint8Array>) {
  const seen: string[] = [];
  const dropped: string[] = [];
  const content: Uint8Array[] = [];
  const parser = new TarParser(
    { entry: (entry) => seen.push(entry.path), content: (bytes) => content.push(Buffer.from(bytes)) },
    { isExpected: (entry) => KNOWN.has(entry.path), dropped: (path) => dropped.push(path) },
  );
  const sieve = new ArchiveSieve(parser);
  const out: Uint8Array[] = [];
  // The caller may use its buffer again.
  for (const chunk of chunks) {
    const own = Buffer.from(chunk);
    out.push(...sieve.push(own).map((piece) => Buffer.from(piece)));
    own.fill(1);
  }
  return { seen, dropped, bytes: Buffer.concat(out), content: Buffer.concat(content), pieces: out.length, parser };
}

function* inChunks(bytes: Buffer, size: number): Generator<Uint8Array, void, undefined> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

/** What is kept and what goes, in the order of the archive. */
const SCENES: [string, { keep?: Buffer; drop?: Buffer }[], string[], string[]][] = [
  ['nothing', [{ keep: entries(a, b, c) }], ['./a', './b', './c'], []],
  ['a lone block of zeros', [{ keep: entries(a) }, { drop: zeros(1) }, { keep: entries(b) }], ['./a', './b'], []],
  ['many blocks of zeros', [{ keep: entries(a) }, { drop: zeros(3) }, { keep: entries(b) }], ['./a', './b'], []],
  [
    'zeros in two places and at the beginning',
    [
      { drop: zeros(2) },
      { keep: entries(a) },
      { drop: zeros(1) },
      { keep: entries(b) },
      { drop: zeros(2) },
      { keep: entries(c) },
    ],
    ['./a', './b', './c'],
    [],
  ],
  ['blocks of a file', [{ keep: entries(a) }, { drop: data(2) }, { keep: entries(b) }], ['./a', './b'], []],
  [
    'what looks like an entry',
    [{ keep: entries(a) }, { drop: entries({ path: './x', content: 'forged' }) }, { keep: entries(b) }],
    ['./a', './b'],
    ['./x'],
  ],
  [
    'a negative size',
    [
      { keep: entries(b) },
      {
        drop: entries({
          ...sparse('./a', 4096, [0, 512], ''),
          pax: { 'GNU.sparse.name': './a', size: `${2n ** 64n - 9n}` },
        }),
      },
      { keep: entries(c) },
    ],
    ['./b', './c'],
    ['./a'],
  ],
  [
    'a part of a negative size',
    [
      { keep: entries(b) },
      { drop: entries(sparse('./a', 4096, [0, 2n ** 64n - 1n, 4096, 0], '')) },
      { keep: entries(c) },
    ],
    ['./b', './c'],
    ['./a'],
  ],
  [
    'parts that share a block',
    [
      { keep: entries(b) },
      { drop: Buffer.concat([entries(sparse('./a', 9000, [0, 5, 5, 600, 9000, 0], 'A'.repeat(605))), data(1)]) },
      { keep: entries(c) },
    ],
    ['./b', './c'],
    ['./a'],
  ],
  [
    'a part beyond the end',
    [{ drop: entries(sparse('./a', 4096, [512, 4096], 'A'.repeat(4096))) }, { keep: entries(b) }],
    ['./b'],
    ['./a'],
  ],
  [
    'a map that is larger than the file',
    [{ drop: entries(sparse('./a', 4096, [0, 512], 'A'.repeat(5))) }, { keep: entries(b) }],
    ['./b'],
    ['./a'],
  ],
  [
    'no map at all',
    [{ drop: entries({ ...sparse('./a', 4096, [], ''), content: '' }) }, { keep: entries(b) }],
    ['./b'],
    ['./a'],
  ],
];

test.each(SCENES)('%s: kept is what is sound, however it is cut into chunks', (_, parts, seen, dropped) => {
  const whole = Buffer.concat([...parts.map((part) => part.keep ?? part.drop ?? zeros(0)), zeros(20)]);
  const kept = Buffer.concat(parts.map((part) => part.keep ?? zeros(0)));
  const all = sift([whole]);
  expect(all.seen).toEqual(seen);
  expect(all.dropped).toEqual(dropped);
  expect(all.bytes.equals(kept)).toBe(true);
  const isSame = (chunks: Iterable<Uint8Array>): boolean => {
    const one = sift(chunks);
    const names = JSON.stringify([one.seen, one.dropped]);
    const isRead = names === JSON.stringify([seen, dropped]) && one.content.equals(all.content);
    return isRead && one.bytes.equals(kept) && one.parser.ended;
  };
  for (const size of [1, 7, 511, 512, 513, 1024]) expect(isSame(inChunks(whole, size)), `chunks of ${size}`).toBe(true);
  for (let split = 1; split < whole.length; split += 1) {
    if (!isSame([whole.subarray(0, split), whole.subarray(split)])) expect.unreachable(`split at ${split}`);
  }
});

test('an archive without nonsense goes in the pieces in which it came, all its content is seen', () => {
  const { pieces, content } = sift([entries(a, b, c)]);
  expect(pieces).toBe(1);
  expect(content.subarray(-700).toString()).toBe('b'.repeat(700));
  expect(content.length).toBe(512 + 517 + 700);
});

test('an archive that is cut off has not ended', () => {
  const whole = Buffer.concat([entries(a, b), zeros(2)]);
  for (let end = whole.length - 1; end > 0; end -= 100) expect(sift([whole.subarray(0, end)]).parser.ended).toBe(false);
});

test('the same nonsense is an error where nothing may write', () => {
  const lone = Buffer.concat([entries(a), zeros(1), entries(b)]);
  expect(() => new TarParser({ entry: () => undefined }).push(lone)).toThrow('goes on after its end');
});

test('after nonsense an entry is asked for as such', () => {
  const asked: [string, boolean][] = [];
  const isExpected = ({ path }: { path: string }, isAfterNonsense: boolean): boolean => {
    asked.push([path, isAfterNonsense]);
    return path !== './b';
  };
  const sieve = new ArchiveSieve(new TarParser({ entry: () => undefined }, { isExpected, dropped: () => undefined }));
  const out = sieve.push(Buffer.concat([entries(a), zeros(1), entries(b), entries(c)]));
  expect(asked).toEqual([
    ['./a', false],
    ['./b', true],
    ['./c', true],
  ]);
  expect(Buffer.concat(out).equals(entries(a, c))).toBe(true);
});

test('a map larger than what is held is taken as it is', () => {
  const parts = Array.from({ length: 120_000 }, (_, part) => [part * 1024, 1]).flat();
  const large = entries(sparse('./a', 120_000 * 1024, parts, 'x'.repeat(1000)), b);
  const { seen, bytes } = sift(inChunks(large, 65_536));
  expect(seen).toEqual(['./a', './b']);
  expect(bytes.equals(large)).toBe(true);
});
