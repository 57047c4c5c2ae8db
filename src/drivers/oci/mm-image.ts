import { readFile, writeFile } from 'node:fs/promises';
import { fieldsOf, numberAt } from '#src/checkpoint/lazy/protobuf.ts';
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

/**
 * Mappings that begin at these addresses become private ones again that may not be dropped. Both bits are in the first
 * byte of the number, so nothing changes its length.
 */
export async function unmark(path: string, starts: ReadonlySet<number>): Promise<void> {
  const bytes = await readFile(path);
  const marked = bytes.length > HEAD_BYTES && bytes.readUInt32LE(0) === COMMON_MAGIC;
  if (!marked || bytes.readUInt32LE(4) !== MM_MAGIC) throw odd(path);
  let found = 0;
  for (const vma of fieldsOf(bytes, HEAD_BYTES, HEAD_BYTES + bytes.readUInt32LE(8), () => odd(path))) {
    if (vma.number !== VMAS || vma.wire !== 2) continue;
    const fields = fieldsOf(bytes, vma.from, vma.to, () => odd(path));
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

function odd(path: string): UmsError {
  return new UmsError('UMS_E_DUMP', {
    message: `${path} is not as this version of ums knows it`,
    fault: 'ums',
    mend: 'Report this with the output of `criu --version`.',
  });
}
