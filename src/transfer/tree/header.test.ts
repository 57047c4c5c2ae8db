import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { ByteReader } from './byte-reader.ts';
import { encodeHeader, type Head, readDeletions, readHead, readSockets, type SocketEntry } from './header.ts';
import { pathProblem } from './paths.ts';

const LIMIT = 64 * 1024 * 1024;

async function* pieces(bytes: Buffer, size: number): AsyncGenerator<Uint8Array, void, undefined> {
  for (let start = 0; start < bytes.length; start += size) yield bytes.subarray(start, start + size);
}

function headOf(deletions: string[], sockets: SocketEntry[]): Head {
  const counts = { entries: 0, deletions: deletions.length, sockets: sockets.length };
  return { version: 2, kind: 'plain', full: false, directories: 0, patches: 0, ...counts };
}

async function decode(bytes: Buffer, size: number) {
  const reader = new ByteReader(pieces(bytes, size), LIMIT);
  const head = await readHead(reader);
  const lists: Buffer[] = [];
  for await (const list of readDeletions(reader, head)) lists.push(list);
  const sockets: SocketEntry[] = [];
  for await (const socket of readSockets(reader, head)) sockets.push(socket);
  return { head, deletions: Buffer.concat(lists).toString('latin1'), sockets, rest: await reader.next() };
}

const name = fc
  .uint8Array({ minLength: 1, maxLength: 255 })
  .map((bytes) => Buffer.from(bytes).toString('latin1').replaceAll(/[/\0]/g, '_'))
  .filter((text) => text !== '.' && text !== '..');
const path = fc
  .array(name, { minLength: 1, maxLength: 4 })
  .map((parts) => parts.join('/'))
  .filter((text) => text.length < 4096);
const socket = fc.record({
  path,
  mode: fc.integer({ min: 0, max: 0o7777 }),
  uid: fc.integer({ min: 0, max: 0xffffffff }),
  gid: fc.integer({ min: 0, max: 0xffffffff }),
});

test('a header is read as it was written, however it is cut', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(path),
      fc.array(socket),
      fc.integer({ min: 1, max: 5000 }),
      async (paths, sockets, size) => {
        const bytes = Buffer.concat([...encodeHeader(headOf(paths, sockets), paths, sockets)]);
        const decoded = await decode(bytes, size);
        expect(decoded.deletions).toBe(paths.map((each) => `${each}\0`).join(''));
        expect(decoded.sockets).toEqual(sockets);
        expect(decoded.rest).toBeUndefined();
      },
    ),
    { numRuns: 50 },
  );
});

test('any cut is noticed', async () => {
  const sockets = [{ path: 's', mode: 0o600, uid: 1, gid: 2 }];
  const bytes = Buffer.concat([...encodeHeader(headOf(['a', 'b/c'], sockets), ['a', 'b/c'], sockets)]);
  for (let length = 0; length < bytes.length; length += 1) {
    await expect(decode(bytes.subarray(0, length), 7)).rejects.toMatchObject({ code: 'UMS_E_PEER_MESSAGE' });
  }
});

test.each(['../x', '/etc/passwd', 'a/../../b', 'a//b', './a', 'a/', '.', '..', 'a\0b', 'x'.repeat(256)])(
  'refuses to delete %j',
  async (bad) => {
    const bytes = Buffer.concat([...encodeHeader(headOf([bad], []), [bad], [])]);
    await expect(decode(bytes, 100)).rejects.toMatchObject({ code: 'UMS_E_PEER_MESSAGE' });
    expect(pathProblem(bad)).toBeDefined();
  },
);

function withHead(head: unknown): Buffer {
  const json = Buffer.from(typeof head === 'string' ? head : JSON.stringify(head));
  const size = Buffer.alloc(4);
  size.writeUInt32LE(json.length);
  return Buffer.concat([Buffer.from('ums-tree'), size, json]);
}

const good = headOf([], []);
test.each([
  ['another mark', Buffer.from('ums-trea\0\0\0\0')],
  ['a head of 4 GiB', Buffer.concat([Buffer.from('ums-tree'), Buffer.from([255, 255, 255, 255])])],
  ['a head that is not JSON', withHead('{')],
  ['another version', withHead({ ...good, version: 1 })],
  ['another kind', withHead({ ...good, kind: 'lower' })],
  ['too many deletions', withHead({ ...good, deletions: 5_000_001 })],
  ['too many sockets', withHead({ ...good, sockets: 100_001 })],
  ['half an entry', withHead({ ...good, entries: 0.5 })],
  ['a member nobody knows', withHead({ ...good, extra: 1 })],
  ['a path of 4 GiB', Buffer.concat([withHead({ ...good, deletions: 1 }), Buffer.from([255, 255, 255, 255])])],
])('refuses %s', async (_, bytes) => {
  await expect(decode(bytes, 64)).rejects.toMatchObject({ code: 'UMS_E_PEER_MESSAGE' });
});

test('refuses more bytes than agreed on', async () => {
  const reader = new ByteReader(pieces(Buffer.alloc(1000), 10), 99);
  await expect(reader.read(500)).rejects.toMatchObject({ code: 'UMS_E_PEER_MESSAGE' });
});
