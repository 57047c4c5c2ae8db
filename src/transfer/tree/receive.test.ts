import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { archive, inPieces, type Member, stream } from './archive.test-support.ts';
import { receiveTree, refuseSystemDirectory } from './receive.ts';

/** What is refused before tar sees it; test/e2e/tree.e2e.ts shows that tar could do no harm either. */
let root = '';
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'ums-receive-'));
});
afterEach(async () => {
  await rm(root, { recursive: true });
});

async function refused(bytes: Buffer, limits = { bytes: 2 ** 30, entries: 100 }): Promise<void> {
  const pass = receiveTree({ path: root, kind: 'plain' }, inPieces(bytes), { limits });
  await expect(pass).rejects.toMatchObject({ code: 'UMS_E_PEER_MESSAGE' });
  expect(await readdir(root)).toEqual([]);
}

const file = { path: './file', content: 'x' };
test.each<[string, Member[]]>([
  ['a parent directory', [{ path: './../escaped', content: 'x' }]],
  ['a parent directory further in', [{ path: './a/../../escaped', content: 'x' }]],
  ['an absolute name', [{ path: '/etc/escaped', content: 'x' }]],
  ['an absolute name in an extended header', [{ ...file, pax: { path: '/etc/escaped' } }]],
  ['an escape in the name of a sparse file', [{ ...file, pax: { 'GNU.sparse.name': '../escaped' } }]],
  ['a hard link to a file of the host', [{ path: './link', type: '1', target: '/etc/passwd' }]],
  ['a hard link upwards', [{ path: './link', type: '1', target: './../../etc/passwd' }]],
  ['the tree itself as a symbolic link', [{ path: './', type: '2', target: '/etc' }]],
  ['an old GNU entry', [{ path: './x', type: 'L', content: '/etc/escaped' }]],
  ['a volume of several', [{ path: './x', type: 'M' }]],
  ['a header without end', [{ ...file, pax: { path: 'x'.repeat(5000) } }]],
])('refuses %s', async (_, members) => {
  await refused(stream({}, archive(members)));
});

test('refuses more entries than announced, and announcements over the limit', async () => {
  const members = ['a', 'b', 'c'].map((name) => ({ path: `./../${name}` }));
  await refused(stream({ entries: 2 }, archive(members)));
  await refused(stream({ entries: 101 }, archive([file])));
  await refused(stream({ entries: 1 }, archive([file])), { bytes: 600, entries: 100 });
});

test('refuses bytes after an empty pass and a tree of another kind', async () => {
  await refused(stream({ entries: 0 }, Buffer.from('x')));
  await refused(stream({ kind: 'overlay-upper' }, archive([file])));
});

test('refuses a header with a wrong checksum and a record that cannot be read', async () => {
  const altered = archive([file]);
  altered.write('g', 3);
  await refused(stream({}, altered));
  const broken = archive([{ ...file, pax: { path: './ok' } }]);
  broken.write('99', 512);
  await refused(stream({}, broken));
});

test.each(['/', '/etc', '/etc/../etc', '/usr/share', '/var/lib', '/proc/self', '/root'])(
  'never receives into %s',
  async (path) => {
    await expect(refuseSystemDirectory(path)).rejects.toMatchObject({ code: 'UMS_E_TRANSFER' });
    await expect(refuseSystemDirectory(root)).resolves.toBeUndefined();
  },
);
