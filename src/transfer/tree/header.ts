import { z } from 'zod';
import { type ByteReader, malformed } from './byte-reader.ts';
import { type BytePath, fromBytes, PATH_LIMIT_BYTES, pathProblem, toBytes } from './paths.ts';

/**
 * What precedes tar's bytes in a pass:
 *
 *   "ums-tree"  u32 n, n bytes of JSON (headSchema)
 *   deletions   × (u32 n, n bytes of path)
 *   sockets     × (u32 mode, u32 uid, u32 gid, u32 n, n bytes of path)
 *   directories × (u32 n, n bytes of head): their owner, mode and times, set when all else is done
 *   patches     × (u32 n, n bytes of head, pieces of the file): see patch.ts
 *
 * Numbers are little-endian. With `entries` 0 nothing follows.
 */
const MAGIC = Buffer.from('ums-tree', 'latin1');
const HEAD_LIMIT_BYTES = 4096;
export const HEADER_VERSION = 2;
/** The other side keeps the list of deletions in memory while it is complete: at most this much. */
export const DELETIONS_LIMIT_BYTES = 256 * 1024 * 1024;
export const SOCKETS_LIMIT = 100_000;
/** Those that CRIU may make something in, which are a handful. */
export const DIRECTORIES_LIMIT = 256;
/** Size of the pieces in which a header is sent. */
const PIECE_BYTES = 256 * 1024;

const count = z.number().int().min(0).max(5_000_000);
const headSchema = z.strictObject({
  version: z.literal(HEADER_VERSION),
  kind: z.enum(['plain', 'overlay-upper']),
  /** The pass carries everything: what is in the directory now goes away first. */
  full: z.boolean(),
  /** At most so many entries in tar's part (some may vanish before tar reads them). */
  entries: count,
  deletions: count,
  sockets: z.number().int().min(0).max(SOCKETS_LIMIT),
  directories: z.number().int().min(0).max(DIRECTORIES_LIMIT),
  /** Files of which the other side holds an earlier version, and gets what is different. */
  patches: count,
});
export type Head = z.infer<typeof headSchema>;

/** A unix socket's inode: tar leaves them out. */
export interface SocketEntry {
  path: BytePath;
  /** Permission bits. */
  mode: number;
  uid: number;
  gid: number;
}

export function* encodeHeader(
  head: Head,
  deletions: Iterable<BytePath>,
  sockets: Iterable<SocketEntry>,
  directories: Iterable<Buffer> = [],
): Generator<Buffer, void, undefined> {
  const json = Buffer.from(JSON.stringify(head), 'utf8');
  let pieces: Buffer[] = [MAGIC, u32(json.length), json];
  let size = MAGIC.length + 4 + json.length;
  const add = (...added: Buffer[]): Buffer | undefined => {
    pieces.push(...added);
    size += added.reduce((sum, piece) => sum + piece.length, 0);
    if (size < PIECE_BYTES) return undefined;
    const whole = Buffer.concat(pieces, size);
    pieces = [];
    size = 0;
    return whole;
  };
  for (const path of deletions) {
    const whole = add(u32(path.length), toBytes(path));
    if (whole !== undefined) yield whole;
  }
  for (const { path, mode, uid, gid } of sockets) {
    const whole = add(u32(mode), u32(uid), u32(gid), u32(path.length), toBytes(path));
    if (whole !== undefined) yield whole;
  }
  for (const directory of directories) {
    const whole = add(u32(directory.length), directory);
    if (whole !== undefined) yield whole;
  }
  if (size > 0) yield Buffer.concat(pieces, size);
}

export async function readHead(reader: ByteReader): Promise<Head> {
  const magic = await reader.read(MAGIC.length);
  if (!magic.equals(MAGIC)) throw malformed('does not begin with its mark');
  const size = (await reader.read(4)).readUInt32LE();
  if (size > HEAD_LIMIT_BYTES) throw malformed(`has a head of ${size} bytes`);
  const text = (await reader.read(size)).toString('utf8');
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw malformed(`has a head that is not JSON (${error instanceof Error ? error.message : String(error)})`);
  }
  const head = headSchema.safeParse(value);
  if (!head.success) throw malformed(`has a head that is not valid: ${z.prettifyError(head.error)}`);
  return head.data;
}

/** The deletions of a pass as the bytes that go to the confined remover: the path and a NUL for each. */
export async function* readDeletions(reader: ByteReader, head: Head): AsyncGenerator<Buffer, void, undefined> {
  let total = 0;
  let batch: string[] = [];
  let batchSize = 0;
  for (let index = 0; index < head.deletions; index += 1) {
    const path = await readPath(reader);
    total += path.length + 1;
    if (total > DELETIONS_LIMIT_BYTES) throw malformed('lists too many deletions');
    batch.push(`${path}\0`);
    batchSize += path.length + 1;
    if (batchSize >= PIECE_BYTES) {
      yield Buffer.from(batch.join(''), 'latin1');
      batch = [];
      batchSize = 0;
    }
  }
  if (batchSize > 0) yield Buffer.from(batch.join(''), 'latin1');
}

export async function* readSockets(reader: ByteReader, head: Head): AsyncGenerator<SocketEntry, void, undefined> {
  for (let index = 0; index < head.sockets; index += 1) {
    const fixed = await reader.read(12);
    const mode = fixed.readUInt32LE(0);
    if (mode > 0o7777) throw malformed('has a socket with an impossible mode');
    yield { mode, uid: fixed.readUInt32LE(4), gid: fixed.readUInt32LE(8), path: await readPath(reader) };
  }
}

async function readPath(reader: ByteReader): Promise<BytePath> {
  const size = (await reader.read(4)).readUInt32LE();
  if (size === 0 || size >= PATH_LIMIT_BYTES) throw malformed(`has a path of ${size} bytes`);
  const path = fromBytes(await reader.read(size));
  const problem = pathProblem(path);
  if (problem !== undefined) throw malformed(`has a path that ${problem}`);
  return path;
}

export function u32(value: number): Buffer {
  const bytes = Buffer.allocUnsafe(4);
  bytes.writeUInt32LE(value);
  return bytes;
}
