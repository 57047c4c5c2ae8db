import { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { expect, test } from 'vitest';
import { LayerFilter } from './layer-filter.ts';

function entry(name: string, content: Buffer, type = '0'): Buffer {
  const header = Buffer.alloc(512);
  header.write(name, 0, 'latin1');
  header.write(`${content.length.toString(8).padStart(11, '0')}\0`, 124);
  header.write(type, 156);
  return Buffer.concat([header, content, Buffer.alloc((512 - (content.length % 512)) % 512)]);
}

const [a, b] = ['a'.repeat(64), 'b'.repeat(64)];
const layer = (digest: string, size: number): Buffer => entry(`blobs/sha256/${digest}`, Buffer.alloc(size, 7));
const end = Buffer.alloc(1024);

async function filtered(archive: Buffer, piece: number, known: string[]): Promise<{ bytes: Buffer; skipped: number }> {
  const pieces: Buffer[] = [];
  for (let at = 0; at < archive.length; at += piece) pieces.push(archive.subarray(at, at + piece));
  const filter = new LayerFilter(known);
  return { bytes: await buffer(Readable.from(pieces, { objectMode: false }).pipe(filter)), skipped: filter.skipped };
}

test.each([1, 100, 512, 5000, 1 << 20])('leaves out known layers and nothing else, in pieces of %i', async (piece) => {
  const extended = entry('PaxHeaders/x', Buffer.from('18 mtime=1.50000\n\n'), 'x');
  const keep = [
    entry('oci-layout', Buffer.from('{}')),
    extended,
    layer(b, 3000),
    entry('blobs/', Buffer.alloc(0), '5'),
  ];
  const archive = Buffer.concat([keep[0] ?? end, extended, layer(a, 1025), ...keep.slice(1), layer(a, 0), end]);
  const { bytes, skipped } = await filtered(archive, piece, [`sha256:${a}`]);
  expect(skipped).toBe(2);
  expect(bytes.equals(Buffer.concat([...keep, end]))).toBe(true);
});

test('without known layers an archive is as it was', async () => {
  const archive = Buffer.concat([layer(a, 700), layer(b, 0), end]);
  expect((await filtered(archive, 333, [])).bytes.equals(archive)).toBe(true);
});

test('a size in an extended header counts', async () => {
  const content = Buffer.alloc(600, 1);
  const lying = layer(a, 600);
  lying.write('00000000000\0', 124);
  const archive = Buffer.concat([entry('PaxHeaders/x', Buffer.from('12 size=600\n'), 'x'), lying, layer(b, 5), end]);
  expect(content.length).toBe(600);
  expect((await filtered(archive, 777, [a])).bytes.equals(Buffer.concat([layer(b, 5), end]))).toBe(true);
});
