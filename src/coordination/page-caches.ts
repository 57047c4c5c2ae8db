import { mkdir, readdir, rm, stat, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { PageCache, PageCacheWriter } from '#src/transfer/pages/cache.ts';
import { isMissing } from '#src/transfer/pages/store-files.ts';
import type { SagaContext } from './context.ts';

/**
 * Pages that services had when they left this system, by the services' uids. When one comes back, what it still has of them
 * need not travel. They are memory of the services, so they are for root alone, limited in all, and deleted when the
 * service has come back or after some days; the oldest go first. Of what is free on the disk a new one takes half at most.
 */
const LIFE_MS = 3 * 24 * 3_600_000;
type Context = Pick<SagaContext, 'pageCaches'>;

function placeOf(context: Context, uid: string): string {
  return join(context.pageCaches.root, uid);
}

/** Takes copies of the pages as they leave; undefined where no cache is wanted. */
export async function writePageCache(context: Context, uid: string): Promise<PageCacheWriter | undefined> {
  const { root, limit_bytes } = context.pageCaches;
  if (limit_bytes === 0) return undefined;
  await mkdir(root, { recursive: true, mode: 0o700 });
  const { bavail, bsize } = await statfs(root);
  return await PageCacheWriter.create(placeOf(context, uid), Math.min(limit_bytes, Math.floor((bavail * bsize) / 2)));
}

/** When another one is there: removes the oldest, so that all together keep the limit. */
export async function trimPageCaches({ pageCaches: { root, limit_bytes } }: Context): Promise<void> {
  const caches = await Promise.all((await finishedIn(root)).map((name) => sizeOf(join(root, name))));
  let left_bytes = limit_bytes;
  for (const cache of caches.toSorted((one, other) => other.changed_at - one.changed_at)) {
    left_bytes -= cache.bytes;
    if (left_bytes < 0) await rm(cache.path, { recursive: true, force: true });
  }
}

async function finishedIn(root: string): Promise<string[]> {
  return (await readdir(root)).filter((name) => !name.includes('.new-'));
}

async function sizeOf(path: string): Promise<{ path: string; bytes: number; changed_at: number }> {
  try {
    const { size: bytes, mtimeMs: changed_at } = await stat(join(path, 'pages'));
    return { path, bytes, changed_at };
  } catch (error) {
    // Its service has come back meanwhile.
    if (isMissing(error)) return { path, bytes: 0, changed_at: 0 };
    throw error;
  }
}

/** What is here of a service that comes back; undefined when nothing is. */
export function openPageCache(context: SagaContext, uid: string): Promise<PageCache | undefined> {
  return PageCache.open(placeOf(context, uid));
}

/** The service is here again, so what it left behind is of no more use. */
export function dropPageCache(context: SagaContext, uid: string): Promise<void> {
  return rm(placeOf(context, uid), { recursive: true, force: true });
}

/** At the start of the agent: removes caches that are old, and what a killed agent left unfinished. */
export async function sweepPageCaches(root: string): Promise<void> {
  await mkdir(root, { recursive: true, mode: 0o700 });
  for (const name of await readdir(root)) {
    const path = join(root, name);
    const unfinished = name.includes('.new-');
    if (unfinished || (await stat(path)).mtimeMs + LIFE_MS < Date.now())
      await rm(path, { recursive: true, force: true });
  }
}
