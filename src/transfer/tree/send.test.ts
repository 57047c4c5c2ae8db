import { link, mkdir, mkdtemp, open, rename, rm, symlink, truncate, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { ByteReader } from './byte-reader.ts';
import { type Head, readDeletions, readHead, readSockets } from './header.ts';
import { scanTree } from './scan.ts';
import { type SendOptions, sendTree } from './send.ts';
import { type TarEntry, TarParser } from './tar-parser.ts';

let root = '';
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'ums-tree-'));
});
afterEach(async () => {
  await rm(root, { recursive: true });
});

interface Seen {
  head: Head;
  deletions: string[];
  sockets: string[];
  entries: Map<string, TarEntry>;
}

async function collect(options: Partial<SendOptions> = {}, meddle?: { afterBytes: number; work: () => Promise<void> }) {
  const sending = sendTree({ tree: { path: root, kind: 'plain' }, live: false, ...options });
  async function* meddled(): AsyncGenerator<Uint8Array, void, undefined> {
    let [bytes, isDone] = [0, meddle === undefined];
    for await (const chunk of sending.stream) {
      bytes += chunk.length;
      if (!isDone && meddle !== undefined && bytes > meddle.afterBytes) {
        isDone = true;
        await meddle.work();
      }
      yield chunk;
    }
  }
  const reader = new ByteReader(meddled(), 2 ** 30);
  const head = await readHead(reader);
  const lists: Buffer[] = [];
  for await (const list of readDeletions(reader, head)) lists.push(list);
  const sockets: string[] = [];
  for await (const socket of readSockets(reader, head)) sockets.push(socket.path);
  const entries = new Map<string, TarEntry>();
  const parser = new TarParser({ entry: (entry) => entries.set(entry.path, entry) });
  for (let chunk = await reader.next(); chunk !== undefined; chunk = await reader.next()) parser.push(chunk);
  const deletions = Buffer.concat(lists).toString('latin1').split('\0').slice(0, -1);
  const seen: Seen = { head, deletions, sockets, entries };
  return { ...seen, result: sending.result() };
}

test('names of every kind arrive as they are', async () => {
  const names = ['-C', '--checkpoint=1', 'new\nline', 'back\\nslash', '*?[a]', '@x', ' ', 'x'.repeat(255), '日本'];
  for (const name of names) await writeFile(join(root, name), name);
  await writeFile(Buffer.concat([Buffer.from(`${root}/`), Buffer.from([0xff, 0xfe, 0x80])]), '');
  const { entries, result } = await collect();
  const expected = [...names.map((name) => Buffer.from(name).toString('latin1')), '\xff\xfe\x80'];
  expect([...entries.keys()].sort()).toEqual(['./', ...expected.map((name) => `./${name}`)].sort());
  expect(result.files).toBe(names.length + 2);
});

test('links, holes, sockets and dangling symbolic links', async () => {
  await writeFile(join(root, 'a'), 'content');
  await link(join(root, 'a'), join(root, 'b'));
  await symlink('/nowhere', join(root, 'dangling'));
  await writeFile(join(root, 'holes'), '');
  await truncate(join(root, 'holes'), 1 << 30);
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(join(root, 'socket'), resolve));
  try {
    const { entries, sockets, result } = await collect();
    expect(entries.get('./b')).toMatchObject({ type: '1', target: './a' });
    expect(entries.get('./dangling')).toMatchObject({ type: '2', target: '/nowhere' });
    expect(entries.get('./holes')?.size).toBe(1n << 30n);
    expect(result.bytes).toBeLessThan(100_000);
    expect(sockets).toEqual(['socket']);
  } finally {
    await new Promise((resolve) => server.close(resolve));
  }
});

/** A snapshot old enough that nothing in it counts as racily recent. */
async function settled() {
  const { result } = await collect();
  Object.assign(result.snapshot, { startedNs: result.snapshot.startedNs + 10_000_000_000n });
  return result.snapshot;
}

test('a second pass carries what changed and the directories that hold it', async () => {
  await mkdir(join(root, 'd/e'), { recursive: true });
  for (const name of ['keep', 'gone', 'd/change', 'd/e/keep']) await writeFile(join(root, name), name);
  const since = await settled();
  await rm(join(root, 'gone'));
  await writeFile(join(root, 'd/change'), 'changed');
  const { head, deletions, entries } = await collect({ since });
  expect(head.full).toBe(false);
  expect(deletions).toEqual(['gone']);
  expect([...entries.keys()]).toEqual(['./', './d/', './d/change']);
});

test('an unchanged tree is a hundred bytes', async () => {
  await writeFile(join(root, 'a'), 'a');
  const { result } = await collect({ since: await settled() });
  expect(result).toMatchObject({ files: 0, deletions: 0 });
  expect(result.bytes).toBeLessThan(200);
});

/** Starts a pass, lets `meddle` work between the walk and tar, and reads the rest. */
async function meddled(options: Partial<SendOptions>, meddle: () => Promise<void>) {
  const sending = sendTree({ tree: { path: root, kind: 'plain' }, live: false, ...options });
  const stream = sending.stream[Symbol.asyncIterator]();
  await stream.next();
  await meddle();
  for (let step = await stream.next(); step.done !== true; step = await stream.next());
  return sending.result();
}

test('what vanishes in a live pass goes in the next, even when it comes back with its old times', async () => {
  await mkdir(join(root, 'd'));
  await writeFile(join(root, 'd/inside'), 'inside');
  const { snapshot } = await meddled({ live: true }, () => rename(join(root, 'd'), join(root, 'away')));
  await rename(join(root, 'away'), join(root, 'd'));
  Object.assign(snapshot, { startedNs: snapshot.startedNs + 10_000_000_000n });
  const { entries } = await collect({ since: snapshot });
  expect([...entries.keys()]).toContain('./d/inside');
});

test('a file that grows in a live pass is no failure', async () => {
  await writeFile(join(root, 'log'), 'a');
  await expect(meddled({ live: true }, () => writeFile(join(root, 'log'), 'aaaa'))).resolves.toMatchObject({
    files: 2,
  });
});

/** tar is held up by its reader in the first part of a file with holes when the file is cut to an odd size. */
function shrinking(live: boolean) {
  return collect({ live }, { afterBytes: 100_000, work: () => truncate(join(root, 'holes'), (3 << 20) + 5) });
}

async function makeHoles(): Promise<void> {
  const file = await open(join(root, 'holes'), 'w');
  await file.write(Buffer.alloc(4 << 20, 'x'), 0, 4 << 20, 0);
  await file.write(Buffer.alloc(4 << 20, 'y'), 0, 4 << 20, 8 << 20);
  await file.truncate(16 << 20);
  await file.close();
  await writeFile(join(root, 'then'), 'another');
}

test('a file with holes that shrinks in a live pass leaves the archive sound, and goes again', async () => {
  await makeHoles();
  const { entries, result } = await shrinking(true);
  expect([...entries.keys()]).toEqual(['./', './holes', './then']);
  expect(result.files).toBe(3);
  Object.assign(result.snapshot, { startedNs: result.snapshot.startedNs + 10_000_000_000n });
  const next = await collect({ since: result.snapshot });
  expect([...next.entries.keys()]).toContain('./holes');
});

test('a file with holes that shrinks while the service is frozen is a failure', async () => {
  await makeHoles();
  await expect(shrinking(false)).rejects.toMatchObject({ code: expect.stringMatching(/^UMS_E_/) });
});

test.each([
  ['vanishes', () => rm(join(root, 'file'))],
  ['grows', () => writeFile(join(root, 'file'), 'longer')],
])('a file that %s while the service is frozen is a failure', async (_, meddle) => {
  await writeFile(join(root, 'file'), 'a');
  await expect(meddled({ live: false }, meddle)).rejects.toMatchObject({ code: 'UMS_E_TRANSFER' });
});

test('aborting ends the stream', async () => {
  await writeFile(join(root, 'file'), 'a');
  const controller = new AbortController();
  const pass = meddled({ signal: controller.signal }, async () => controller.abort());
  await expect(pass).rejects.toThrow('aborted');
});

test('a tree with too many entries or none at all is refused', async () => {
  for (const name of ['a', 'b', 'c']) await writeFile(join(root, name), '');
  await expect(scanTree(root, { maxEntries: 4 })).resolves.toMatchObject({ count: 4 });
  await expect(scanTree(root, { maxEntries: 3 })).rejects.toMatchObject({ code: 'UMS_E_TRANSFER' });
  await expect(scanTree(join(root, 'a'))).rejects.toMatchObject({ code: 'UMS_E_TRANSFER' });
  await expect(scanTree(join(root, 'missing'))).rejects.toMatchObject({ code: 'UMS_E_TRANSFER' });
});
