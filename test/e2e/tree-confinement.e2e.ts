import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { APPLY_PROGRAM } from '#src/transfer/tree/applier.ts';
import { archive, inPieces, type Member, stream } from '#src/transfer/tree/archive.test-support.ts';
import { receiveTree } from '#src/transfer/tree/index.ts';
import { unpackingArguments } from '#src/transfer/tree/tar.ts';
import { LIMITS, python, workspace } from './tree-support.ts';

const SCRIPT = fileURLToPath(import.meta.resolve('#src/transfer/tree/confine.sh'));

/** Everything outside of the tree that an escape could touch here. */
async function scene(t: Parameters<typeof workspace>[0]) {
  const base = await workspace(t);
  const tree = join(base, 'tree');
  const outside = join(base, 'outside');
  await mkdir(tree);
  await mkdir(outside);
  await writeFile(join(outside, 'victim'), 'untouched');
  return { base, tree, outside };
}

function confined(tree: string, step: string, input: Buffer, args: readonly string[] = []) {
  const namespaces = ['--mount', '--propagation=private', '--net', '--ipc', '--pid', '--fork', '--kill-child=KILL'];
  const result = spawnSync('unshare', [...namespaces, 'sh', SCRIPT, tree, step, ...args], {
    input,
    timeout: 20_000,
    encoding: 'utf8',
    env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C' },
  });
  return { code: result.status, stderr: result.stderr };
}

function command(letter: string, payload = ''): Buffer {
  const head = Buffer.alloc(5);
  head.write(letter);
  head.writeUInt32LE(payload.length, 1);
  return Buffer.concat([head, Buffer.from(payload)]);
}

void test('tar alone, given the worst archives, writes nothing outside of the tree', async (t) => {
  const { base, tree, outside } = await scene(t);
  const mark = `ums-escape-${process.pid}`;
  const worst: Member[][] = [
    [{ path: `./../outside/${mark}`, content: 'x' }],
    [{ path: `${outside}/${mark}`, content: 'x' }],
    [
      { path: './out', type: '2', target: outside },
      { path: `./out/${mark}`, content: 'x' },
    ],
    [
      { path: './up', type: '2', target: `../../../../../../../..${outside}` },
      { path: `./up/${mark}`, content: 'x' },
    ],
    [
      { path: './self', type: '2', target: `/proc/self/root${outside}` },
      { path: `./self/${mark}`, content: 'x' },
    ],
    [{ path: './hard', type: '1', target: `${outside}/victim` }],
  ];
  for (const members of worst) {
    // --absolute-names takes tar's own precautions away, so that only the confinement is left.
    for (const extra of [[], ['--absolute-names']]) {
      confined(tree, 'extract', archive(members), [...unpackingArguments(), ...extra]);
    }
  }
  assert.deepEqual(readdirSync(outside), ['victim']);
  assert.deepEqual(readdirSync(base).sort(), ['outside', 'tree']);
  assert.equal(statSync(join(outside, 'victim')).nlink, 1);
});

void test('symbolic links that an earlier pass left do not lead a later one out', async (t) => {
  const { tree, outside } = await scene(t);
  await symlink(outside, join(tree, 'out'));
  await symlink('../outside', join(tree, 'up'));
  await symlink(join(outside, 'victim'), join(tree, 'file'));
  const receive = (bytes: Buffer) => receiveTree({ path: tree, kind: 'plain' }, inPieces(bytes), { limits: LIMITS });
  for (const link of ['out', 'up']) {
    const write = receive(stream({}, archive([{ path: `./${link}/victim`, content: 'overwritten' }])));
    await assert.rejects(write, { code: 'UMS_E_TRANSFER' });
    await receive(stream({ entries: 0 }, Buffer.alloc(0), [`${link}/victim`]));
    const head = stream({ entries: 0, sockets: 1 }, Buffer.alloc(0));
    const socket = Buffer.alloc(16);
    socket.writeUInt32LE(link.length + 7, 12);
    await assert.rejects(receive(Buffer.concat([head, socket, Buffer.from(`${link}/socket`)])), {
      code: 'UMS_E_TRANSFER',
    });
  }
  await receive(stream({}, archive([{ path: './file', content: 'in the tree' }])));
  assert.deepEqual(readdirSync(outside), ['victim']);
  assert.equal(readFileSync(join(outside, 'victim'), 'utf8'), 'untouched');
  assert.equal(readFileSync(join(tree, 'file'), 'utf8'), 'in the tree');
});

void test('emptying and deleting stay in the tree', async (t) => {
  const { tree, outside } = await scene(t);
  await symlink(outside, join(tree, 'out'));
  await symlink('..', join(tree, 'up'));
  const list = ['out/victim', 'up/outside/victim', '../outside/victim', `../../..${outside}/victim`];
  confined(tree, 'apply', Buffer.concat([command('d', `${list.join('\0')}\0`), command('x')]), [APPLY_PROGRAM]);
  confined(tree, 'empty', Buffer.alloc(0));
  assert.deepEqual(readdirSync(tree), []);
  assert.equal(readFileSync(join(outside, 'victim'), 'utf8'), 'untouched');
});

void test('a list of deletions that was cut off deletes nothing', async (t) => {
  const { tree } = await scene(t);
  await mkdir(join(tree, 'keep'));
  const whole = Buffer.concat([command('d', 'keep\0'), command('x')]);
  const result = confined(tree, 'apply', whole.subarray(0, -5), [APPLY_PROGRAM]);
  assert.equal(result.code, 0, 'nothing was asked');
  assert.equal(confined(tree, 'apply', whole.subarray(0, -7), [APPLY_PROGRAM]).code, 2);
  assert.deepEqual(readdirSync(tree), ['keep']);
  confined(tree, 'apply', whole, [APPLY_PROGRAM]);
  assert.deepEqual(readdirSync(tree), []);
});

void test('an archive that is cut off anywhere is an error', async (t) => {
  const { tree } = await scene(t);
  const bytes = stream(
    {},
    archive([
      { path: './a', content: 'a' },
      { path: './b', content: 'b'.repeat(600) },
    ]),
  );
  for (let length = bytes.length - 1; length > 0; length -= 256) {
    const pass = receiveTree({ path: tree, kind: 'plain' }, inPieces(bytes.subarray(0, length)), { limits: LIMITS });
    await assert.rejects(pass, { code: 'UMS_E_PEER_MESSAGE' });
  }
});

void test('attributes that the file system refuses are an error, not a warning', async (t) => {
  const { tree } = await scene(t);
  const members = [{ path: './a', content: 'a', pax: { 'SCHILY.xattr.nonsense.name': 'value' } }];
  const pass = receiveTree({ path: tree, kind: 'plain' }, inPieces(stream({}, archive(members))), { limits: LIMITS });
  await assert.rejects(pass, { code: 'UMS_E_TRANSFER' });
});

void test('device files in the tree cannot be opened while it is received', async (t) => {
  const { tree } = await scene(t);
  await python(tree, `os.mknod('null', stat.S_IFCHR | 0o666, os.makedev(1, 3))`);
  const result = confined(tree, 'extract', archive([{ path: './a' }]), [
    ...unpackingArguments(),
    '--files-from=/tree/null',
  ]);
  assert.match(result.stderr, /Permission denied/);
});
