import { closeSync, existsSync, fstatSync, openSync, readFileSync, readSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

const POLL_MS = 100;
const CHUNK_BYTES = 256 * 1024;

/** Prints a log, or its last lines, and goes on as it grows if asked. The log may not be there yet. */
export async function followLog(path: string, options: { follow?: boolean; lines?: number }): Promise<void> {
  const text = existsSync(path) ? readFileSync(path, 'utf8') : '';
  const lines = options.lines === undefined ? text : lastLines(text, options.lines);
  process.stdout.write(lines);
  let position = Buffer.byteLength(text);
  while (options.follow === true) {
    await sleep(POLL_MS);
    if (existsSync(path)) position = printFrom(path, position);
  }
}

export function lastLines(text: string, count: number): string {
  const lines = text.split('\n');
  const complete = lines.at(-1) === '' ? lines.slice(0, -1) : lines;
  return count === 0
    ? ''
    : complete
        .slice(-count)
        .map((line) => `${line}\n`)
        .join('');
}

function printFrom(path: string, position: number): number {
  const fd = openSync(path, 'r');
  try {
    // A log that became shorter is a new one.
    let at = fstatSync(fd).size < position ? 0 : position;
    const chunk = Buffer.alloc(CHUNK_BYTES);
    for (
      let length = readSync(fd, chunk, 0, CHUNK_BYTES, at);
      length > 0;
      length = readSync(fd, chunk, 0, CHUNK_BYTES, at)
    ) {
      process.stdout.write(Buffer.from(chunk.subarray(0, length)));
      at += length;
    }
    return at;
  } finally {
    closeSync(fd);
  }
}
