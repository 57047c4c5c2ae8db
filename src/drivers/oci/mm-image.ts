import { readFile, writeFile } from 'node:fs/promises';
import { UmsError } from '#src/telemetry/errors.ts';

/** CRIU's image of an address space: two magic numbers, then one message of Protocol Buffers after its length. */
const HEAD_BYTES = 12;
const COMMON_MAGIC = 0x54564319;
const MM_MAGIC = 0x57492820;
/** Field of mm_entry that holds a mapping, and of vma_entry that hold its beginning and its flags. */
const VMAS = 14;
const START = 1;
const FLAGS = 6;
const MAP_PRIVATE = 0x02;
const MAP_DROPPABLE = 0x08;

interface Field {
  number: number;
  wire: number;
  /** Where its value begins and ends; for a number, its bytes. */
  from: number;
  to: number;
}

/**
 * Mappings that begin at these addresses become private ones again that may not be dropped. Both bits are in the first
 * byte of the number, so nothing changes its length.
 */
export async function unmark(path: string, starts: ReadonlySet<number>): Promise<void> {
  const bytes = await readFile(path);
  const marked = bytes.length > HEAD_BYTES && bytes.readUInt32LE(0) === COMMON_MAGIC;
  if (!marked || bytes.readUInt32LE(4) !== MM_MAGIC) throw odd(path);
  let found = 0;
  for (const vma of fieldsOf(bytes, HEAD_BYTES, HEAD_BYTES + bytes.readUInt32LE(8), path)) {
    if (vma.number !== VMAS || vma.wire !== 2) continue;
    const fields = fieldsOf(bytes, vma.from, vma.to, path);
    const start = fields.find((field) => field.number === START);
    const flags = fields.find((field) => field.number === FLAGS);
    if (start === undefined || flags === undefined || !starts.has(numberAt(bytes, start))) continue;
    const low = bytes[flags.from] ?? 0;
    if ((low & MAP_DROPPABLE) === 0) throw odd(path);
    bytes[flags.from] = (low & ~MAP_DROPPABLE) | MAP_PRIVATE;
    found += 1;
  }
  if (found !== starts.size) throw odd(path);
  await writeFile(path, bytes);
}

function fieldsOf(bytes: Buffer, from: number, to: number, path: string): Field[] {
  if (to > bytes.length) throw odd(path);
  const fields: Field[] = [];
  for (let at = from; at < to; ) {
    const key: Field = { number: 0, wire: 0, from: at, to: endOfNumber(bytes, at) };
    const value = numberAt(bytes, key);
    const field: Field = { number: Math.floor(value / 8), wire: value % 8, from: key.to, to: key.to };
    if (field.wire === 0) field.to = endOfNumber(bytes, field.from);
    else if (field.wire === 1) field.to += 8;
    else if (field.wire === 5) field.to += 4;
    else if (field.wire === 2) {
      field.from = endOfNumber(bytes, key.to);
      field.to = field.from + numberAt(bytes, { ...field, from: key.to, to: field.from });
    } else throw odd(path);
    if (field.to > to) throw odd(path);
    fields.push(field);
    at = field.to;
  }
  return fields;
}

function endOfNumber(bytes: Buffer, at: number): number {
  let end = at;
  while ((bytes[end] ?? 0) >= 128) end += 1;
  return end + 1;
}

function numberAt(bytes: Buffer, { from, to }: Field): number {
  let value = 0;
  for (let at = to - 1; at >= from; at -= 1) value = value * 128 + ((bytes[at] ?? 0) & 127);
  return value;
}

function odd(path: string): UmsError {
  return new UmsError('UMS_E_DUMP', {
    message: `${path} is not as this version of ums knows it`,
    fault: 'ums',
    mend: 'Report this with the output of `criu --version`.',
  });
}
