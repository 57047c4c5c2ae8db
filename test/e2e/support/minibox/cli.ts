import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import { type Freezer, readIfThere } from '#src/drivers/oci/cgroup.ts';
import { runDetached } from '#src/drivers/oci/child.ts';
import { ServiceErrors } from '#src/drivers/oci/service-errors.ts';
import { UmsError } from '#src/telemetry/errors.ts';
import { run } from '#src/telemetry/exec.ts';

/** The one door to the engine: its command, and what minibox.sh says of its files. */
export const MINIBOX = fileURLToPath(new URL('minibox.sh', import.meta.url));
const BOXES = '/srv/minibox';
const GROUPS = '/sys/fs/cgroup/minibox';
/** Devices of the host in every box. */
export const DEVICES = ['null', 'zero', 'urandom'];
const QUERY_LIMIT_MS = 15_000;
const CHANGE_LIMIT_MS = 60_000;
const WORDS_MAX = 4096;

export const errors = new ServiceErrors('minibox', {
  list: 'minibox ls',
  run: (name) => `Start it (minibox start ${name})`,
  free: (name) => `minibox rm ${name}`,
});

const boxSchema = z
  .tuple([z.uuid(), z.string().max(255), z.enum(['running', 'stopped', 'created']), z.coerce.number().int()])
  .transform(([id, name, , made_s]) => ({ id, name, createdAt: new Date(made_s * 1000).toISOString() }));
export type Box = z.infer<typeof boxSchema>;

export async function listBoxes(): Promise<Box[]> {
  const { stdout } = await run(MINIBOX, ['ls'], { timeout_ms: QUERY_LIMIT_MS });
  const lines = stdout.split('\n').filter((line) => line !== '');
  return lines.map((line) => boxSchema.parse(line.split('\t')));
}

/** A command that changes something goes on when the agent is killed. */
export async function changeBox(args: readonly string[]): Promise<void> {
  try {
    await runDetached(MINIBOX, args, { timeout_ms: CHANGE_LIMIT_MS, onTimeout: 'terminate' });
  } catch (error) {
    if (!(error instanceof UmsError) || error.code !== 'UMS_E_CHILD') throw error;
    const detail = error.detail === undefined ? {} : { detail: error.detail };
    throw new UmsError('UMS_E_ENGINE', { message: error.message, fault: 'ums', ...detail, cause: error });
  }
}

export function boxPath(name: string): string {
  return join(BOXES, name);
}

/** Where minibox makes a box before it moves it to its place. */
export function draftPath(id: string): string {
  return join(BOXES, `.new-${id}`);
}

export function rootfsOf(name: string): string {
  return join(boxPath(name), 'rootfs');
}

export function startedMark(name: string): string {
  return join(boxPath(name), 'started');
}

export function groupOf(name: string): Freezer {
  return { version: 2, directory: join(GROUPS, name) };
}

/** Whether the box of that name is the one of that id. */
export function isHere({ id, name }: { id: string; name: string }): boolean {
  return readIfThere(join(boxPath(name), 'id'))?.trim() === id;
}

const wordsSchema = z.array(z.string().max(131_072)).max(WORDS_MAX);

/** The box's command, or its environment. */
export async function wordsOf(name: string, what: 'command' | 'env'): Promise<string[]> {
  const text = await readFile(join(boxPath(name), what), 'utf8');
  return wordsSchema.parse(text.split('\0').slice(0, -1));
}
