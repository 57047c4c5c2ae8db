import { existsSync } from 'node:fs';
import { cp, mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';

/** What of a checkout runs on a host or in an image: the agent and the command line. */
export const APP_PARTS = ['src', 'package.json', 'package-lock.json', 'LICENSE'] as const;

const lockSchema = z.object({
  packages: z.record(z.string(), z.object({ dev: z.boolean().optional(), optional: z.boolean().optional() })),
});

/** Folders of the packages that are needed to run, as the lock file names them. */
export async function runtimePackages(checkout: string): Promise<string[]> {
  return (await lockedPackages(checkout)).map(({ name }) => name);
}

async function lockedPackages(checkout: string): Promise<{ name: string; optional: boolean }[]> {
  const lock = lockSchema.parse(JSON.parse(await readFile(join(checkout, 'package-lock.json'), 'utf8')));
  return Object.entries(lock.packages)
    .filter(([path, entry]) => /^node_modules\/(@[^/]+\/)?[^/]+$/.test(path) && entry.dev !== true)
    .map(([path, entry]) => ({ name: path.slice('node_modules/'.length), optional: entry.optional === true }));
}

/** Where the packages are: beside the checkout or wherever the launcher keeps them. */
function modulesDirectory(): string {
  const resolved = fileURLToPath(import.meta.resolve('commander'));
  const mark = '/node_modules/';
  return resolved.slice(0, resolved.lastIndexOf(mark) + mark.length);
}

export async function copyParts(checkout: string, target: string, parts: readonly string[]): Promise<void> {
  await mkdir(target, { recursive: true });
  for (const part of parts) {
    if (existsSync(join(checkout, part))) await cp(join(checkout, part), join(target, part), { recursive: true });
  }
}

/** Copies the packages that are needed to run beneath `target`/node_modules. */
export async function copyPackages(checkout: string, target: string): Promise<void> {
  const modules = modulesDirectory();
  for (const { name, optional } of await lockedPackages(checkout)) {
    const from = join(modules, name);
    // Optional packages for other processors are in the lock file but not on the disk.
    if (!optional || existsSync(from))
      await cp(from, join(target, 'node_modules', name), { recursive: true, dereference: true });
  }
}
