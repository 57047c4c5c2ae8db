import { Buffer } from 'node:buffer';

/** A file of an initial RAM file system. */
export interface CpioEntry {
  path: string;
  /** File type and permissions, as in `stat`. */
  mode: number;
  content: Uint8Array;
}

const MAGIC = '070701';
const ALIGNMENT = 4;

/** An archive in the kernel's format for initial RAM file systems ("newc"). Directories come before what is in them. */
export function cpio(entries: readonly CpioEntry[]): Buffer {
  const parts = entries.flatMap((entry, index) => record(entry, index + 1));
  return Buffer.concat([...parts, ...record({ path: 'TRAILER!!!', mode: 0, content: Buffer.alloc(0) }, 0)]);
}

function record({ path, mode, content }: CpioEntry, inode: number): Buffer[] {
  const name = Buffer.from(`${path}\0`);
  // inode, mode, uid, gid, links, mtime, size, device (2), device of a node (2), length of the name, checksum
  const fields = [inode, mode, 0, 0, 1, 0, content.length, 0, 0, 0, 0, name.length, 0];
  const header = Buffer.from(MAGIC + fields.map((field) => field.toString(16).padStart(8, '0')).join(''));
  return [padded(Buffer.concat([header, name])), padded(Buffer.from(content))];
}

function padded(part: Buffer): Buffer {
  const rest = part.length % ALIGNMENT;
  return rest === 0 ? part : Buffer.concat([part, Buffer.alloc(ALIGNMENT - rest)]);
}
