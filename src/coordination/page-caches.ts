import { mkdir, readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { PageCache, PageCacheWriter } from '#src/transfer/pages/cache.ts';
import type { SagaContext } from './context.ts';

/**
 * Pages that a service had when it left this system, by the service's uid. When it comes back, what it still has of them
 * need not travel. They are memory of the service, so they are for root alone, limited, and deleted when it has come
 * back or after some days.
 */
const LIFE_MS = 3 * 24 * 3_600_000;

function placeOf(context: SagaContext, uid: string): string {
  return join(context.pageCaches.root, uid);
}

/** Takes copies of the pages as they leave; undefined where no cache is wanted. */
export function writePageCache(context: SagaContext, uid: string): Promise<PageCacheWriter> | undefined {
  const { limit_bytes } = context.pageCaches;
  return limit_bytes === 0 ? undefined : PageCacheWriter.create(placeOf(context, uid), limit_bytes);
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
