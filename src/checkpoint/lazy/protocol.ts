import type { Socket } from 'node:net';
import { UmsError } from '#src/telemetry/errors.ts';
import { versionAtLeast } from '../criu.ts';

/**
 * CRIU's page-server protocol. Every message starts with one header; numbers are little-endian. CRIU 4.2 made the number
 * of pages 64 bits wide, so the header has two layouts and both sides must be of the same.
 */
const STATUS_BYTES = 4;
const CLOSE_LIMIT_MS = 10_000;

export const COMMAND = {
  add: 1,
  hole: 2,
  open: 3,
  open2: 4,
  parent: 5,
  addFlags: 6,
  get: 7,
  close: 0x1023,
  forceClose: 0x1024,
} as const;

/** Flags of a pagemap entry, which travel in the upper half of the command word. */
export const PE_PARENT = 1;
export const PE_LAZY = 2;
export const PE_PRESENT = 4;

export interface Header {
  command: number;
  flags: number;
  pages: number;
  /** Virtual address. */
  address: number;
  /** Of a dump: type of the image in the low byte, its id above. Of GET: the process's pid in the image. */
  target: bigint;
}

export interface Layout {
  readonly bytes: number;
  write(header: Header, into: Buffer, at: number): void;
  read(from: Buffer, at: number): Header;
}

const COMMAND_MASK = 0xffff;

function layoutOf(wide: boolean): Layout {
  const at = wide ? { pages: 8, address: 16, target: 24 } : { pages: 4, address: 8, target: 16 };
  return {
    bytes: wide ? 32 : 24,
    write(header, into, start) {
      into.writeUInt32LE(((header.flags << 16) | header.command) >>> 0, start);
      if (wide) {
        into.writeUInt32LE(0, start + 4);
        into.writeBigUInt64LE(BigInt(header.pages), start + at.pages);
      } else {
        into.writeUInt32LE(header.pages, start + at.pages);
      }
      into.writeBigUInt64LE(BigInt(header.address), start + at.address);
      into.writeBigUInt64LE(header.target, start + at.target);
    },
    read(from, start) {
      const word = from.readUInt32LE(start);
      return {
        command: word & COMMAND_MASK,
        flags: word >>> 16,
        pages: wide ? safe(from.readBigUInt64LE(start + at.pages)) : from.readUInt32LE(start + at.pages),
        address: safe(from.readBigUInt64LE(start + at.address)),
        target: from.readBigUInt64LE(start + at.target),
      };
    },
  };
}

const WIDE = layoutOf(true);
const NARROW = layoutOf(false);

export function headerLayout(version: string | undefined): Layout {
  return versionAtLeast(version, '4.2') ? WIDE : NARROW;
}

function safe(value: bigint): number {
  if (value <= BigInt(Number.MAX_SAFE_INTEGER)) return Number(value);
  throw protocolError(`a number beyond every limit: ${value}`);
}

export function protocolError(what: string): UmsError {
  return new UmsError('UMS_E_CHILD', {
    message: `CRIU's page protocol was not followed: ${what}`,
    fault: 'ums',
    mend: 'Check that CRIU is of the same version as when the agent started.',
  });
}

/**
 * Tells CRIU's page server of a lazy dump that nobody will ask for pages. CRIU then ends the dump; the memory is read from
 * the frozen processes by other means.
 */
export async function closePageServer(socket: Socket, version: string | undefined): Promise<void> {
  const layout = headerLayout(version);
  const message = Buffer.alloc(layout.bytes);
  layout.write({ command: COMMAND.close, flags: 0, pages: 0, address: 0, target: 0n }, message, 0);
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  let answer = Buffer.alloc(0);
  socket.on('data', (chunk: Buffer) => {
    answer = Buffer.concat([answer, chunk]);
    if (answer.length < STATUS_BYTES) return;
    if (answer.readInt32LE(0) === 0) resolve();
    else reject(protocolError(`the page server ended with ${answer.readInt32LE(0)}`));
  });
  socket.once('error', reject);
  socket.once('close', () => reject(protocolError('the page server closed without a word')));
  socket.setTimeout(CLOSE_LIMIT_MS, () => reject(protocolError('the page server does not answer')));
  socket.write(message);
  try {
    await promise;
  } finally {
    // It waits for this side to close first.
    socket.destroy();
  }
}
