import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import type { Host } from './host.ts';
import { userConfigDir, type LabPaths } from './names.ts';

/**
 * Contexts by which the command line finds the hosts' agents. Every lab keeps its own (UMS_CONFIG_DIR=…/.config); the
 * default lab's are also put among the user's, unless the user has one of that name for something else.
 */
const DEFAULT_LAB = 'ums';
const contextSchema = z.object({ name: z.string(), socket: z.string() });

function directories(lab: string, paths: LabPaths): string[] {
  const own = join(paths.config, 'contexts');
  return lab === DEFAULT_LAB ? [own, join(userConfigDir(), 'contexts')] : [own];
}

/** Returns the names of contexts that were left alone because they lead elsewhere. */
export function writeContexts(lab: string, paths: LabPaths, hosts: readonly Host[]): string[] {
  const left: string[] = [];
  for (const directory of directories(lab, paths)) {
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    for (const host of hosts) {
      const file = join(directory, `${host.name}.json`);
      if (existsSync(file) && !isOurs(file, paths)) left.push(host.name);
      else writeFileSync(file, `${JSON.stringify({ name: host.name, socket: host.socketPath })}\n`);
    }
  }
  return left;
}

export function removeContexts(lab: string, paths: LabPaths, hosts: readonly string[]): void {
  for (const directory of directories(lab, paths)) {
    for (const host of hosts) {
      const file = join(directory, `${host}.json`);
      if (existsSync(file) && isOurs(file, paths)) rmSync(file);
    }
  }
}

function isOurs(file: string, paths: LabPaths): boolean {
  try {
    const parsed = contextSchema.safeParse(JSON.parse(readFileSync(file, 'utf8')));
    return parsed.success && parsed.data.socket.startsWith(`${paths.base}/`);
  } catch {
    return false;
  }
}
