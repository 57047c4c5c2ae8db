import { mkdir, mkdtemp, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { array, assert, asyncProperty, integer } from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { imageManifest, receiveImages, sendImages, verifyImages } from './images.ts';

let from = '';
let to = '';

beforeEach(async () => {
  from = await mkdtemp(join(tmpdir(), 'ums-images-'));
  to = await mkdtemp(join(tmpdir(), 'ums-images-'));
});
afterEach(async () => {
  await rm(from, { recursive: true });
  await rm(to, { recursive: true });
});

async function sent(): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  for await (const part of sendImages(from)) parts.push(part);
  return Buffer.concat(parts);
}

async function* chunked(bytes: Buffer, sizes: number[]): AsyncGenerator<Uint8Array> {
  let at = 0;
  for (let i = 0; at < bytes.length; i += 1) {
    const size = Math.max(sizes[i % sizes.length] ?? 1, 1);
    yield bytes.subarray(at, at + size);
    at += size;
  }
}

const LIMIT = 1 << 20;

describe('the stream of CRIU images', () => {
  it('gives the same files whatever the chunks', async () => {
    await writeFile(join(from, 'core-1.img'), Buffer.alloc(3000, 7));
    await writeFile(join(from, 'empty.img'), '');
    await mkdir(join(from, '1'));
    await writeFile(join(from, '1', 'core-1.img'), Buffer.alloc(2000, 5));
    await writeFile(join(from, 'tmpfs-dev-84.tar.gz.img'), Buffer.alloc(70_000, 9));
    const bytes = await sent();
    await assert(
      asyncProperty(array(integer({ min: 100, max: 9000 }), { minLength: 1, maxLength: 20 }), async (sizes) => {
        await receiveImages(to, chunked(bytes, sizes), LIMIT);
        for (const name of ['core-1.img', 'empty.img', 'tmpfs-dev-84.tar.gz.img', '1/core-1.img']) {
          // Not toEqual, which compares buffers element by element.
          expect((await readFile(join(to, name))).equals(await readFile(join(from, name)))).toBe(true);
        }
      }),
      { numRuns: 15 },
    );
  });

  it('refuses a stream that is cut off anywhere, or altered anywhere behind the manifest', async () => {
    await writeFile(join(from, 'core-1.img'), Buffer.alloc(500, 7));
    const bytes = await sent();
    for (const cut of [0, 3, 10, bytes.length - 501, bytes.length - 1]) {
      await expect(receiveImages(to, chunked(bytes.subarray(0, cut), [100]), LIMIT)).rejects.toMatchObject({
        code: 'UMS_E_IMAGE_CORRUPT',
      });
    }
    const altered = Buffer.from(bytes);
    altered[bytes.length - 100] = 8;
    await expect(receiveImages(to, chunked(altered, [100]), LIMIT)).rejects.toMatchObject({
      code: 'UMS_E_IMAGE_CORRUPT',
    });
  });

  it('refuses names that leave the directory, too many bytes, and bytes after the end', async () => {
    const evil = Buffer.from(JSON.stringify([{ name: '../evil.img', size: 0, sha256: '0'.repeat(64) }]));
    const length = Buffer.alloc(4);
    length.writeUInt32BE(evil.length);
    const refused = { code: 'UMS_E_IMAGE_CORRUPT' };
    await expect(receiveImages(to, chunked(Buffer.concat([length, evil]), [9]), LIMIT)).rejects.toMatchObject(refused);
    await writeFile(join(from, 'a.img'), Buffer.alloc(500));
    const bytes = await sent();
    await expect(receiveImages(to, chunked(bytes, [64]), 499)).rejects.toMatchObject({ code: 'UMS_E_NO_ROOM' });
    await expect(receiveImages(to, chunked(Buffer.concat([bytes, bytes]), [64]), LIMIT)).rejects.toMatchObject(refused);
    length.writeUInt32BE(0xffff_ffff);
    await expect(receiveImages(to, chunked(length, [4]), LIMIT)).rejects.toMatchObject(refused);
  });

  it('notices on disk what was altered, cut or removed after it arrived', async () => {
    await writeFile(join(from, 'a.img'), Buffer.alloc(500, 1));
    const manifest = await imageManifest(from);
    await expect(verifyImages(from, manifest)).resolves.toBeUndefined();
    await writeFile(join(from, 'a.img'), Buffer.alloc(500, 2));
    await expect(verifyImages(from, manifest)).rejects.toMatchObject({ code: 'UMS_E_IMAGE_CORRUPT' });
    await truncate(join(from, 'a.img'), 499);
    await expect(verifyImages(from, manifest)).rejects.toMatchObject({ code: 'UMS_E_IMAGE_CORRUPT' });
    await rm(join(from, 'a.img'));
    await expect(verifyImages(from, manifest)).rejects.toMatchObject({ code: 'UMS_E_IMAGE_CORRUPT' });
  });
});
