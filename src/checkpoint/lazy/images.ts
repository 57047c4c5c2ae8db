import { open, readFile } from 'node:fs/promises';
import { UmsError } from '#src/telemetry/errors.ts';
import { PE_PARENT, PE_PRESENT } from './protocol.ts';
import { putNumber } from './protobuf.ts';

/**
 * CRIU's pagemap images: two magic numbers, then messages of Protocol Buffers, each after its length. All that is needed
 * of them are numbers, so they are read and written here without a library.
 */
const COMMON_MAGIC = 0x54564319;
const PAGEMAP_MAGIC = 0x56084025;
const HEAD_BYTES = 8;
const MESSAGE_BYTES_MAX = 4096;
const IMAGE_BYTES_MAX = 512 * 1024 * 1024;
const PAGE_SHIFT = 4096;

export interface PagemapEntry {
  /** Page number. */
  readonly first: number;
  readonly count: number;
  readonly flags: number;
}

export interface Pagemap {
  /** N of pages-N.img. */
  readonly pagesId: number;
  readonly entries: readonly PagemapEntry[];
}

export async function readPagemap(path: string): Promise<Pagemap> {
  const handle = await open(path, 'r');
  try {
    const { size } = await handle.stat();
    if (size > IMAGE_BYTES_MAX) throw corrupt(path, 'it is larger than any pagemap can be');
    return parsePagemap(await readFile(handle), path);
  } finally {
    await handle.close();
  }
}

export function parsePagemap(bytes: Buffer, path: string): Pagemap {
  if (bytes.length < HEAD_BYTES || bytes.readUInt32LE(0) !== COMMON_MAGIC || bytes.readUInt32LE(4) !== PAGEMAP_MAGIC) {
    throw corrupt(path, 'it is no pagemap');
  }
  const messages = splitMessages(bytes, path);
  const head = messages[0];
  const pagesId = head?.get(1);
  if (pagesId === undefined) throw corrupt(path, 'it does not name its pages');
  return { pagesId, entries: messages.slice(1).map((fields) => entryOf(fields, path)) };
}

function splitMessages(bytes: Buffer, path: string): Map<number, number>[] {
  const messages: Map<number, number>[] = [];
  for (let at = HEAD_BYTES; at < bytes.length; ) {
    if (at + 4 > bytes.length) throw corrupt(path, 'it is truncated');
    const length = bytes.readUInt32LE(at);
    const start = at + 4;
    if (length > MESSAGE_BYTES_MAX || start + length > bytes.length) throw corrupt(path, 'it is truncated');
    messages.push(numbersOf(bytes.subarray(start, start + length), path));
    at = start + length;
  }
  return messages;
}

/** Every field of a pagemap is a number (wire type 0). */
function numbersOf(message: Buffer, path: string): Map<number, number> {
  const fields = new Map<number, number>();
  let at = 0;
  const next = (): number => {
    let value = 0;
    for (let scale = 1; scale < 2 ** 63; scale *= 128) {
      const byte = message[at];
      if (byte === undefined) throw corrupt(path, 'a number is cut short');
      at += 1;
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
    throw corrupt(path, 'a number is too long');
  };
  while (at < message.length) {
    const key = next();
    if ((key & 7) !== 0) throw corrupt(path, 'a field is of an unknown kind');
    const value = next();
    if (!Number.isSafeInteger(value)) throw corrupt(path, 'a number is beyond every limit');
    fields.set(key >>> 3, value);
  }
  return fields;
}

/** CRIU before 3.x has no flags: an entry is then in the parent or present. Before 4.2 the count has 32 bits. */
function entryOf(fields: Map<number, number>, path: string): PagemapEntry {
  const address = fields.get(1);
  const count = fields.get(5) ?? fields.get(2);
  if (address === undefined || count === undefined || address % PAGE_SHIFT !== 0)
    throw corrupt(path, 'an entry is odd');
  const flags = fields.get(4) ?? ((fields.get(3) ?? 0) === 1 ? PE_PARENT : PE_PRESENT);
  return { first: address / PAGE_SHIFT, count, flags };
}

export function writePagemap(pagemap: Pagemap): Buffer {
  const head = Buffer.alloc(HEAD_BYTES);
  head.writeUInt32LE(COMMON_MAGIC, 0);
  head.writeUInt32LE(PAGEMAP_MAGIC, 4);
  const parts = [head, message([[1, pagemap.pagesId]])];
  for (const { first, count, flags } of pagemap.entries) {
    const narrow = Math.min(count, 0xffffffff);
    parts.push(
      message([
        [1, first * PAGE_SHIFT],
        [2, narrow],
        [4, flags],
        [5, count],
      ]),
    );
  }
  return Buffer.concat(parts);
}

function message(fields: readonly (readonly [number, number])[]): Buffer {
  const bytes: number[] = [];
  for (const [field, value] of fields) {
    putNumber(bytes, field * 8);
    putNumber(bytes, value);
  }
  const result = Buffer.alloc(4 + bytes.length);
  result.writeUInt32LE(bytes.length, 0);
  result.set(bytes, 4);
  return result;
}

function corrupt(path: string, why: string): UmsError {
  return new UmsError('UMS_E_IMAGE_CORRUPT', {
    message: `A checkpoint image is truncated or altered: ${path}: ${why}.`,
    fault: 'destination',
    state: 'Nothing was restored from it.',
    mend: 'Try again; if it happens again, check the memory of the destination.',
  });
}
