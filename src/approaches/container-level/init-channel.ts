import { closeSync, writeSync } from 'node:fs';
import { Socket } from 'node:net';

/** What a capsule's first process says (capsule-init.pl), and the last word to it. */
export type InitEvent = { kind: 'reaped'; pid: number; status: number } | { kind: 'signal'; name: string };

const EVENTS_FD = 3;
const WORDS_FD = 4;
const LINE_LIMIT = 4096;

export function parseInitLine(line: string): InitEvent | undefined {
  const reaped = /^reaped (\d+) (\d+)$/.exec(line);
  if (reaped !== null) return { kind: 'reaped', pid: Number(reaped[1]), status: Number(reaped[2]) };
  const signal = /^signal ([A-Z0-9]+)$/.exec(line)?.[1];
  return signal === undefined ? undefined : { kind: 'signal', name: signal };
}

/** A status as wait(2) has it → one as a shell shows it. */
export function exitStatusOf(status: number): number {
  const signal = status & 127;
  return signal === 0 ? (status >> 8) & 255 : 128 + signal;
}

/** Calls `handle` for whatever the first process says, until the returned function is called. */
export function listenToInit(handle: (event: InitEvent) => void): () => void {
  const socket = new Socket({ fd: EVENTS_FD, readable: true, writable: false });
  let pending = '';
  socket.setEncoding('utf8');
  socket.on('data', (text: string) => {
    const lines = `${pending}${text}`.split('\n');
    pending = (lines.pop() ?? '').slice(0, LINE_LIMIT);
    for (const line of lines) {
      const event = parseInitLine(line);
      if (event !== undefined) handle(event);
    }
  });
  return () => void socket.destroy();
}

/** The capsule ends with this status, whatever becomes of this process. */
export function lastWord(status: number): void {
  writeSync(WORDS_FD, `exit ${status}\n`);
  closeSync(WORDS_FD);
}
