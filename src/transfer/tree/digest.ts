import { createHash, type Hash } from 'node:crypto';
import type { BytePath } from './paths.ts';
import { toText } from './paths.ts';
import { scanTree } from './scan.ts';
import { pack } from './send.ts';
import { TYPE } from './snapshot.ts';
import { snapshotPath, type TarEntry, TarParser } from './tar-parser.ts';

export interface TreeDigest {
  /** SHA-256 over every entry's metadata and content. */
  digest: string;
  entries: number;
  /** One line an entry, when asked for: what a person compares when two digests differ. */
  listing: string[];
}

export interface DigestOptions {
  signal?: AbortSignal;
  listing?: boolean;
}

/**
 * A digest that two trees share when names, types, modes, owners, times, link groups, device numbers, extended
 * attributes, ACLs and contents are equal. Left out is what cannot or must not be equal: inode and device numbers,
 * change and access times, the layout of holes, the times of sockets and symbolic links' sizes.
 */
export async function digestTree(root: string, options: DigestOptions = {}): Promise<TreeDigest> {
  const snapshot = await scanTree(root, options.signal === undefined ? {} : { signal: options.signal });
  const whole = createHash('sha256');
  const listing: string[] = [];
  let entries = 0;
  const add = (line: string): void => {
    entries += 1;
    whole.update(`${line}\n`);
    if (options.listing === true) listing.push(line);
  };
  const names: BytePath[] = [];
  for (let entry = 0; entry < snapshot.count; entry += 1) {
    const path = snapshot.pathAt(entry);
    if (snapshot.type(entry) !== TYPE.socket) {
      names.push(path);
      continue;
    }
    const mode = (snapshot.get(entry, 'mode') & 0o7777n).toString(8);
    add(`socket ${toText(path)} ${mode} ${snapshot.get(entry, 'uid')}:${snapshot.get(entry, 'gid')}`);
  }
  let open: { line: string; content: Hash | undefined } | undefined;
  const close = (): void => {
    if (open !== undefined) add(open.content === undefined ? open.line : `${open.line} ${open.content.digest('hex')}`);
  };
  const parser = new TarParser({
    entry: (entry) => {
      close();
      open = { line: describe(entry), content: entry.type === '0' ? createHash('sha256') : undefined };
    },
    content: (bytes) => open?.content?.update(bytes),
  });
  // Without --sparse holes are read as zeros, so that content alone counts.
  for await (const chunk of pack(root, names, { sparse: false, live: false, signal: options.signal })) {
    parser.push(chunk);
  }
  close();
  return { digest: whole.digest('hex'), entries, listing };
}

const TYPE_NAMES: Record<string, string> = {
  '0': 'file',
  '1': 'link',
  '2': 'symlink',
  '3': 'character',
  '4': 'block',
  '5': 'directory',
  '6': 'fifo',
};

function describe(entry: TarEntry): string {
  const attributes = [...entry.attributes]
    .map(([name, value]) => `${name}=${Buffer.from(value, 'latin1').toString('base64')}`)
    .sort();
  return [
    TYPE_NAMES[entry.type] ?? entry.type,
    toText(snapshotPath(entry)),
    entry.mode.toString(8),
    `${entry.uid}:${entry.gid}`,
    entry.size,
    entry.mtimeNs,
    entry.device,
    toText(entry.target),
    attributes.join(','),
  ].join(' ');
}
