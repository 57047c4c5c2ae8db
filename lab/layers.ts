import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { labPaths } from './names.ts';
import { readState } from './state.ts';
import { removeTree } from './trees.ts';

/**
 * Keeps the cache from growing for ever: a layer that no lab names, no process has mounted and that is older than a
 * week is removed. Building is the moment for it, because only building adds one.
 */
const AGE_MS_MIN = 7 * 24 * 3600 * 1000;
const LAYER = /^(base|work|tools)-[0-9a-f]{16}$/;
const INCOMPLETE = /\.incomplete-(\d+)(\.preferences)?$/;

export async function removeOldLayers(cache: string, inUse: readonly string[]): Promise<void> {
  await removeAbandoned(cache);
  const named = new Set([...inUse, ...namedByLabs()]);
  const old = readdirSync(cache)
    .filter((name) => LAYER.test(name))
    .map((name) => join(cache, name))
    .filter((path) => !named.has(path) && Date.now() - statSync(path).mtimeMs > AGE_MS_MIN);
  if (old.length === 0) return;
  const mounted = mountedAnywhere();
  for (const path of old) if (!mounted.includes(path)) await removeTree(path);
}

/** What a build left whose process is no more. */
async function removeAbandoned(cache: string): Promise<void> {
  for (const name of readdirSync(cache)) {
    const pid = INCOMPLETE.exec(name)?.[1];
    if (pid !== undefined && !existsSync(`/proc/${pid}`)) await removeTree(join(cache, name));
  }
}

function namedByLabs(): string[] {
  const { base } = labPaths('any');
  return entries(base).flatMap((lab) => {
    try {
      return Object.values(readState(join(base, lab, 'state.json'))?.root ?? {});
    } catch {
      // A lab of another version: what it has mounted is seen by its mounts.
      return [];
    }
  });
}

/** The mount tables of all processes, one after another. */
function mountedAnywhere(): string {
  return entries('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map((pid) => {
      try {
        return readFileSync(`/proc/${pid}/mountinfo`, 'utf8');
      } catch {
        return '';
      }
    })
    .join('');
}

function entries(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}
