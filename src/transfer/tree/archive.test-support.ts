import { encodeHeader, type Head } from './header.ts';
import type { BytePath } from './paths.ts';

/** Writes archives that no honest sender writes. */
export interface Member {
  path: BytePath;
  type?: string;
  target?: BytePath;
  content?: string;
  /** Records of an extended header before it. */
  pax?: Record<string, string>;
}

export function archive(members: readonly Member[], options: { ended?: boolean } = {}): Buffer {
  const blocks = members.flatMap((member) => {
    const content = Buffer.from(member.content ?? '');
    const own = [block(member.path, member.type ?? '0', content.length, member.target ?? ''), padded(content)];
    if (member.pax === undefined) return own;
    const records = Buffer.from(Object.entries(member.pax).map(record).join(''), 'latin1');
    return [block('./PaxHeaders/x', 'x', records.length, ''), padded(records), ...own];
  });
  return Buffer.concat(options.ended === false ? blocks : [...blocks, Buffer.alloc(1024)]);
}

export function stream(head: Partial<Head>, body: Buffer, deletions: readonly BytePath[] = []): Buffer {
  const defaults: Head = {
    version: 2,
    kind: 'plain',
    full: false,
    entries: 10,
    deletions: deletions.length,
    sockets: 0,
    directories: 0,
    patches: 0,
  };
  return Buffer.concat([...encodeHeader({ ...defaults, ...head }, deletions, []), body]);
}

export async function* inPieces(bytes: Buffer, size = 700): AsyncGenerator<Uint8Array, void, undefined> {
  for (let start = 0; start < bytes.length; start += size) yield bytes.subarray(start, start + size);
}

function block(path: BytePath, type: string, size: number, target: BytePath): Buffer {
  const header = Buffer.alloc(512);
  header.write(path, 0, 100, 'latin1');
  header.write('0000644\0', 100);
  header.write('0000000\0', 108);
  header.write('0000000\0', 116);
  header.write(`${size.toString(8).padStart(11, '0')}\0`, 124);
  header.write('14000000000\0', 136);
  header.write('        ', 148);
  header.write(type, 156);
  header.write(target, 157, 100, 'latin1');
  header.write('ustar\x0000', 257);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
  return header;
}

function padded(content: Buffer): Buffer {
  return Buffer.concat([content, Buffer.alloc((512 - (content.length % 512)) % 512)]);
}

function record([key, value]: [string, string]): string {
  const rest = ` ${key}=${value}\n`;
  let length = rest.length + 1;
  while (`${length}${rest}`.length !== length) length += 1;
  return `${length}${rest}`;
}
