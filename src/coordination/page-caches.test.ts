import { mkdtemp, readdir, rm, utimes } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { PAGE_BYTES } from '#src/transfer/pages/model.ts';
import { trimPageCaches, writePageCache } from './page-caches.ts';

let root: string;

beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'ums-caches-'));
});

afterEach(() => rm(root, { recursive: true, force: true }));

async function leave(uid: string, pages: number, at: number, limit_bytes: number): Promise<void> {
  const writer = await writePageCache({ pageCaches: { root, limit_bytes } }, uid);
  const halves = Uint32Array.from({ length: pages * 2 }, (_, n) => n + 1);
  writer?.add(Buffer.alloc(pages * PAGE_BYTES, at), pages, halves);
  await writer?.finish();
  if (writer !== undefined) await utimes(join(root, uid, 'pages'), at, at);
}

it('keeps within the limit with all that services have left, and lets the oldest go', async () => {
  const limit_bytes = 8 * PAGE_BYTES;
  const context = { pageCaches: { root, limit_bytes } };
  for (const [at, uid] of ['first', 'second', 'third'].entries()) await leave(uid, 3, 1000 + at, limit_bytes);
  await trimPageCaches(context);
  expect((await readdir(root)).sort()).toEqual(['second', 'third']);
  // One alone never takes more.
  await leave('large', 20, 2000, limit_bytes);
  await trimPageCaches(context);
  expect(await readdir(root)).toEqual(['large']);
});

it('leaves alone what is still being written', async () => {
  const limit_bytes = 2 * PAGE_BYTES;
  const context = { pageCaches: { root, limit_bytes } };
  const writer = await writePageCache(context, 'leaving');
  await leave('gone', 2, 1000, limit_bytes);
  await leave('lately', 2, 1001, limit_bytes);
  await trimPageCaches(context);
  expect((await readdir(root)).filter((name) => !name.startsWith('leaving.new-'))).toEqual(['lately']);
  await writer?.finish();
  expect(await readdir(root)).toContain('leaving');
});

it('keeps none where none is wanted', async () => {
  expect(await writePageCache({ pageCaches: { root, limit_bytes: 0 } }, 'any')).toBeUndefined();
});
