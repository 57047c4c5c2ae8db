import { closeSync, constants, openSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { UmsError } from '#src/telemetry/errors.ts';
import { PAGE_BYTES, type PageState, pagesFailed, type SpaceName } from './model.ts';

/** The byte of a page in a `.state` file: absent, provisional or final in the low bits, and two more. */
export const State = { absent: 0, provisional: 1, final: 2, mask: 3, zero: 4, stale: 8 } as const;

export function stateOf(byte: number): PageState {
  switch (byte & State.mask) {
    case State.final:
      return 'final';
    case State.provisional:
      return 'provisional';
    default:
      return 'absent';
  }
}

export function dataPath(dir: string, name: SpaceName): string {
  return join(dir, `${name}.data`);
}
export function statePath(dir: string, name: SpaceName): string {
  return join(dir, `${name}.state`);
}

export function chunksPath(dir: string, name: SpaceName): string {
  return join(dir, `${name}.chunks`);
}

export function isMissing(error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'ENOENT';
}

export function openPrivate(path: string, writable: boolean): number {
  // No file of the store is ever reached through a link that somebody else put there.
  const flags = (writable ? constants.O_RDWR | constants.O_CREAT : constants.O_RDONLY) | constants.O_NOFOLLOW;
  return openSync(path, flags, 0o600);
}

/** Reads that much or less: what is beyond the end of the file is zeros. */
export function readAt(fd: number, target: Uint8Array, position: number): void {
  let done = 0;
  while (done < target.length) {
    const read = readSync(fd, target, done, target.length - done, position + done);
    if (read === 0) break;
    done += read;
  }
  if (done < target.length) target.fill(0, done);
}

export function writeAt(fd: number, source: Uint8Array, position: number): void {
  let done = 0;
  try {
    while (done < source.length) {
      done += writeSync(fd, source, done, source.length - done, position + done);
    }
  } catch (error) {
    throw storeFailed(error);
  }
}

function storeFailed(error: unknown): UmsError {
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  if (code === 'ENOSPC' || code === 'ENOMEM' || code === 'EDQUOT') return noRoom();
  return pagesFailed(
    `the page store cannot be written (${error instanceof Error ? error.message : String(error)})`,
    'destination',
  );
}

export function noRoom(): UmsError {
  return new UmsError('UMS_E_NO_ROOM', {
    message: 'The destination has no room for more memory pages of the service.',
    fault: 'destination',
    mend: 'Free memory at the destination, end other migrations to it, or choose another system.',
  });
}

/** A store as another process reads it, while the agent writes it. Nothing is cached, so every answer is of now. */
export class PageStoreReader {
  readonly #dir: string;
  readonly #files = new Map<SpaceName, { data: number; state: number }>();

  constructor(dir: string) {
    this.#dir = dir;
  }

  /** The state bytes of these pages (see State); of a space that is not there yet, absent. */
  states(name: SpaceName, first: number, target: Uint8Array): void {
    const files = this.#open(name);
    if (files === undefined) target.fill(State.absent);
    else readAt(files.state, target, first);
  }

  /** What is stored of these pages, whatever state they are in. */
  read(name: SpaceName, first: number, target: Buffer): void {
    const files = this.#open(name);
    if (files === undefined) target.fill(0);
    else readAt(files.data, target, first * PAGE_BYTES);
  }

  close(): void {
    for (const { data, state } of this.#files.values()) {
      closeSync(data);
      closeSync(state);
    }
    this.#files.clear();
  }

  #open(name: SpaceName): { data: number; state: number } | undefined {
    const known = this.#files.get(name);
    if (known !== undefined) return known;
    let data: number;
    try {
      data = openPrivate(dataPath(this.#dir, name), false);
    } catch (error) {
      if (isMissing(error)) return undefined;
      throw error;
    }
    try {
      const files = { data, state: openPrivate(statePath(this.#dir, name), false) };
      this.#files.set(name, files);
      return files;
    } catch (error) {
      closeSync(data);
      if (isMissing(error)) return undefined;
      throw error;
    }
  }
}
