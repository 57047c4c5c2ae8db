/**
 * How tar stores a file with holes: first a map of its parts (decimal numbers, a line each: how many parts, then offset
 * and size of each) filled up to a multiple of 512 bytes, then the parts one after the other.
 */
export interface SparseMap {
  parts: { offset: bigint; size: bigint }[];
  /** Bytes that the map itself takes. */
  length: number;
}

/** Larger maps are not looked at. */
export const MAP_LIMIT_BYTES = 1024 * 1024;
const RECORD_BYTES = 512;

/**
 * Reads the map at the beginning of these bytes. tar makes it while the service writes, and what it makes of a file that
 * grows or shrinks in that moment can be nonsense: parts beyond the end, parts of a negative size, and parts that begin
 * in the middle of a block, which the readers of tar archives do not agree on.
 */
export function parseMap(bytes: Buffer, fileSize: bigint): SparseMap | 'incomplete' | 'nonsense' {
  const numbers: bigint[] = [];
  let wanted = 1;
  let at = 0;
  while (numbers.length < wanted) {
    const end = bytes.indexOf(0x0a, at);
    if (end < 0) return bytes.length - at > 20 ? 'nonsense' : 'incomplete';
    const digits = bytes.toString('latin1', at, end);
    if (!/^[0-9]{1,19}$/.test(digits)) return 'nonsense';
    numbers.push(BigInt(digits));
    at = end + 1;
    if (numbers.length === 1) wanted = 1 + 2 * Number(numbers[0]);
  }
  const length = Math.ceil(at / RECORD_BYTES) * RECORD_BYTES;
  if (bytes.length < length) return 'incomplete';
  const parts: { offset: bigint; size: bigint }[] = [];
  for (let part = 1; part < numbers.length; part += 2) {
    parts.push({ offset: numbers[part] ?? 0n, size: numbers[part + 1] ?? 0n });
  }
  return isSound(parts, fileSize) ? { parts, length } : 'nonsense';
}

function isSound(parts: SparseMap['parts'], fileSize: bigint): boolean {
  let end = 0n;
  let isLast = false;
  for (const { offset, size } of parts) {
    if (offset < end || (isLast && size > 0n)) return false;
    end = offset + size;
    // Every part begins a block of the archive, so only the last one may leave one half full.
    isLast ||= size % BigInt(RECORD_BYTES) !== 0n;
  }
  return end <= fileSize;
}
