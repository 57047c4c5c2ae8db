import { type ByteReader, malformed } from './byte-reader.ts';
import { type BytePath, fromBytes, PATH_LIMIT_BYTES, pathProblem, toBytes } from './paths.ts';

/**
 * Files of which only parts go, and directories of which only the times do. The same bytes go over the wire and to
 * apply.pl, which says how they look; what comes from a peer is checked in between.
 */
export interface PatchHead {
  path: BytePath;
  size: bigint;
  mode: number;
  uid: number;
  gid: number;
  mtimeNs: bigint;
  /** Extended attributes as facts.pl tells them. */
  attributes: Uint8Array;
}

export const NO_ATTRIBUTES: Uint8Array = Buffer.alloc(4);

/** Bytes that one piece of a file may have. */
export const PIECE_LIMIT_BYTES = 4 * 1024 * 1024;
const FIXED_BYTES = 36;
/** Linux gives a file at most 64 KiB of names, and a file system much less of values. */
const ATTRIBUTES_LIMIT_BYTES = 2 * 1024 * 1024;
const HEAD_LIMIT_BYTES = FIXED_BYTES + PATH_LIMIT_BYTES + ATTRIBUTES_LIMIT_BYTES;
/** Above what any file system of Linux can hold in a file. */
const SIZE_LIMIT = 2n ** 63n - 1n;
const SECOND_NS = 1_000_000_000n;

export function encodePatchHead(head: PatchHead): Buffer {
  const path = toBytes(head.path);
  const bytes = Buffer.alloc(FIXED_BYTES + path.length + head.attributes.length);
  const ns = ((head.mtimeNs % SECOND_NS) + SECOND_NS) % SECOND_NS;
  bytes.writeBigUInt64LE(head.size, 0);
  bytes.writeUInt32LE(head.mode, 8);
  bytes.writeUInt32LE(head.uid, 12);
  bytes.writeUInt32LE(head.gid, 16);
  bytes.writeBigInt64LE((head.mtimeNs - ns) / SECOND_NS, 20);
  bytes.writeUInt32LE(Number(ns), 28);
  bytes.writeUInt32LE(path.length, 32);
  bytes.set(path, FIXED_BYTES);
  bytes.set(head.attributes, FIXED_BYTES + path.length);
  return bytes;
}

/** A head as it came from a peer: its bytes, and what must be known of it here. */
export async function readPatchHead(
  reader: ByteReader,
  isRootAllowed: boolean,
): Promise<{ bytes: Buffer; size: bigint }> {
  const length = (await reader.read(4)).readUInt32LE();
  if (length < FIXED_BYTES + 4 || length > HEAD_LIMIT_BYTES) throw malformed(`has a file's head of ${length} bytes`);
  const bytes = await reader.read(length);
  const size = bytes.readBigUInt64LE(0);
  if (size > SIZE_LIMIT) throw malformed('has a file of an impossible size');
  if (bytes.readUInt32LE(8) > 0o7777) throw malformed('has a file with an impossible mode');
  if (bytes.readUInt32LE(28) >= 1_000_000_000) throw malformed('has a file with an impossible time');
  const pathEnd = FIXED_BYTES + bytes.readUInt32LE(32);
  if (pathEnd + 4 > length) throw malformed('has a file with a path that is cut off');
  const path = fromBytes(bytes.subarray(FIXED_BYTES, pathEnd));
  const problem = path === '' && isRootAllowed ? undefined : pathProblem(path);
  if (problem !== undefined) throw malformed(`has a file whose path ${problem}`);
  checkAttributes(bytes, pathEnd);
  return { bytes, size };
}

/** Names and values must fill what is left, to the byte: whoever reads them afterwards trusts their lengths. */
function checkAttributes(bytes: Buffer, start: number): void {
  const count = bytes.readUInt32LE(start);
  let at = start + 4;
  for (let part = 0; part < count * 2; part += 1) {
    if (at + 4 > bytes.length) throw malformed('has attributes that are cut off');
    const length = bytes.readUInt32LE(at);
    const isName = part % 2 === 0;
    if (isName && (length === 0 || length > 255 || bytes.subarray(at + 4, at + 4 + length).includes(0))) {
      throw malformed('has an attribute with an impossible name');
    }
    at += 4 + length;
  }
  if (at !== bytes.length) throw malformed('has attributes of the wrong length');
}

/** On the wire: the head, then pieces (u32 length, u64 offset, bytes), and a length of 0. */
export function encodePiece(offset: number, bytes: Uint8Array): [Buffer, Uint8Array] {
  const head = Buffer.alloc(12);
  head.writeUInt32LE(bytes.length, 0);
  head.writeBigUInt64LE(BigInt(offset), 4);
  return [head, bytes];
}

export const LAST_PIECE: Uint8Array = Buffer.alloc(4);

/** Offset and content of each piece, as apply.pl takes them. */
export async function* readPieces(reader: ByteReader, size: bigint): AsyncGenerator<Buffer, void, undefined> {
  for (;;) {
    const length = (await reader.read(4)).readUInt32LE();
    if (length === 0) return;
    if (length > PIECE_LIMIT_BYTES) throw malformed(`has a piece of ${length} bytes`);
    const piece = await reader.read(8 + length);
    if (piece.readBigUInt64LE(0) + BigInt(length) > size) throw malformed('has a piece beyond the end of its file');
    yield piece;
  }
}
