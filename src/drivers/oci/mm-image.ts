import { readFile, writeFile } from 'node:fs/promises';
import { encodeNumber, type Field, fieldsOf, numberAt } from '#src/checkpoint/lazy/protobuf.ts';
import { UmsError } from '#src/telemetry/errors.ts';

/** CRIU's image of an address space: two magic numbers, then one message of Protocol Buffers after its length. */
const HEAD_BYTES = 12;
const COMMON_MAGIC = 0x54564319;
const MM_MAGIC = 0x57492820;
/** Field of mm_entry that holds a mapping, and of vma_entry that hold its beginning, its end and its flags. */
const VMAS = 14;
const START = 1;
const END = 2;
const FLAGS = 6;
const VARINT = 0;
const BYTES = 2;
const MAP_PRIVATE = 0x02;
const MAP_DROPPABLE = 0x08;

/** Mappings that begin at these addresses become private ones again that may not be dropped, and end where they did. */
export async function unmark(path: string, ends: ReadonlyMap<number, number>): Promise<void> {
  const bytes = await readFile(path);
  const marked = bytes.length > HEAD_BYTES && bytes.readUInt32LE(0) === COMMON_MAGIC;
  if (!marked || bytes.readUInt32LE(4) !== MM_MAGIC) throw odd(path);
  const to = HEAD_BYTES + bytes.readUInt32LE(8);
  const parts: Buffer[] = [];
  let done = HEAD_BYTES;
  let found = 0;
  for (const vma of fieldsOf(bytes, HEAD_BYTES, to, () => odd(path))) {
    if (vma.number !== VMAS || vma.wire !== BYTES) continue;
    const fields = fieldsOf(bytes, vma.from, vma.to, () => odd(path));
    const start = fields.find((field) => field.number === START);
    const end = start === undefined ? undefined : ends.get(numberAt(bytes, start));
    if (end === undefined) continue;
    if (![END, FLAGS].every((number) => fields.some((field) => field.number === number))) throw odd(path);
    const body = Buffer.concat(fields.map((field) => unmarked(bytes, field, end, path)));
    parts.push(bytes.subarray(done, vma.at), encodeNumber(VMAS * 8 + BYTES), encodeNumber(body.length), body);
    done = vma.to;
    found += 1;
  }
  if (found !== ends.size) throw odd(path);
  const message = Buffer.concat([...parts, bytes.subarray(done, to)]);
  const head = Buffer.from(bytes.subarray(0, HEAD_BYTES));
  head.writeUInt32LE(message.length, 8);
  await writeFile(path, Buffer.concat([head, message, bytes.subarray(to)]));
}

/** A field of a mapping that was shown to CRIU as one that may be dropped, and as shorter than it is. */
function unmarked(bytes: Buffer, field: Field, end: number, path: string): Buffer {
  if (field.number === END) return Buffer.concat([encodeNumber(END * 8 + VARINT), encodeNumber(end)]);
  if (field.number !== FLAGS) return bytes.subarray(field.at, field.to);
  const flags = numberAt(bytes, field);
  if ((flags & MAP_DROPPABLE) === 0) throw odd(path);
  return Buffer.concat([encodeNumber(FLAGS * 8 + VARINT), encodeNumber((flags & ~MAP_DROPPABLE) | MAP_PRIVATE)]);
}

function odd(path: string): UmsError {
  return new UmsError('UMS_E_DUMP', {
    message: `${path} is not as this version of ums knows it`,
    fault: 'ums',
    mend: 'Report this with the output of `criu --version`.',
  });
}
