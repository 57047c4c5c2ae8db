import assert from 'node:assert/strict';
import { existsSync, lstatSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { run } from '#src/telemetry/exec.ts';
import { receiveTree, sendTree, type TreeLocation } from '#src/transfer/tree/index.ts';
import { assertSame, LIMITS, mount, pass, python, receive, workspace } from './tree-support.ts';

const EVERYTHING = `
def w(path, data=b'x'):
  with open(path, 'wb') as f: f.write(data)
def acl(*entries):
  return struct.pack('<I', 2) + b''.join(struct.pack('<HHI', *entry) for entry in entries)
nobody = 0xffffffff
for name in ['plain', '-C', 'new\\nline', b'\\xff\\xfe', 'back\\\\n', '*?[x]', '.dot', 'n' * 255]: w(name)
os.makedirs('d/e'); w('d/f'); os.link('d/f', 'hard'); os.link('d/f', 'd/e/hard')
os.symlink('../../../nonexistent', 'up'); os.symlink('/nonexistent/absolute', 'absolute'); os.symlink('nowhere', 'dangling')
os.lchown('dangling', 7, 8)
os.mkfifo('fifo', 0o640); os.mknod('whiteout', stat.S_IFCHR, 0); os.mknod('block', stat.S_IFBLK | 0o660, os.makedev(7, 300))
with open('holes', 'wb') as f:
  f.truncate(1 << 28); f.seek(100 << 20); f.write(b'hello')
w('suid'); os.chown('suid', 1000, 1001); os.chmod('suid', 0o6755)
w('capable'); os.chown('capable', 5, 5)
os.setxattr('capable', 'security.capability', struct.pack('<5I', 0x02000001, 1 << 10, 0, 0, 0))
os.setxattr('d', 'trusted.overlay.opaque', b'y'); os.setxattr('d', 'trusted.overlay.origin', b'of this host')
os.setxattr('plain', 'user.binary', b'1\\n=2\\0\\xff'); os.setxattr('fifo', 'trusted.x', b'y'); os.setxattr('d/e', 'user.e', b'1')
os.setxattr('d', 'system.posix_acl_default', acl((1, 7, nobody), (2, 5, 1234), (4, 5, nobody), (16, 5, nobody), (32, 0, nobody)))
os.setxattr('plain', 'system.posix_acl_access', acl((1, 6, nobody), (4, 4, nobody), (8, 4, 4321), (16, 4, nobody), (32, 0, nobody)))
w('old'); os.chown('old', 3000000000, 4000000000); os.utime('old', ns=(0, -1500000000))
os.mkdir('sticky'); os.chmod('sticky', 0o1777)
os.mkdir('readonly'); w('readonly/in'); os.chmod('readonly', 0o555); os.utime('readonly', ns=(1, 1500000000000000001))
deep = '/'.join(['deep' * 20] * 3); os.makedirs(deep)
for path, mode in [('short', 0o751), (deep + '/s', 0o600)]:
  here = os.open('.', os.O_RDONLY); os.chdir(os.path.dirname(path) or '.')
  s = socket.socket(socket.AF_UNIX); s.bind(os.path.basename(path)); s.close()
  os.chown(os.path.basename(path), 12, 34); os.chmod(os.path.basename(path), mode); os.fchdir(here)
os.rename(deep + '/s', deep + '/' + 's' * 200)
os.utime(deep, ns=(1, 1400000000123456789))
os.chown('.', 21, 22); os.chmod('.', 0o751); os.setxattr('.', 'user.root', b'yes')
`;

async function pair(t: Parameters<typeof workspace>[0], kind: TreeLocation['kind'] = 'plain') {
  const base = await workspace(t);
  const source: TreeLocation = { path: join(base, 'source'), kind };
  const destination: TreeLocation = { path: join(base, 'destination'), kind };
  await mkdir(source.path);
  await mkdir(destination.path);
  return { base, source, destination };
}

void test('a tree with one of everything arrives whole, and what was there goes', async (t) => {
  const { source, destination } = await pair(t);
  await python(source.path, EVERYTHING);
  await python(
    destination.path,
    `os.makedirs('d/left/over'); os.mkdir('plain'); os.symlink('/nonexistent/absolute', 'sticky')`,
  );
  const first = await pass(source, destination);
  await assertSame(source.path, destination.path);
  assert.ok(first.sent.bytes < 200_000, `holes were sent: ${first.sent.bytes} bytes`);
  assert.ok(statSync(join(destination.path, 'holes')).blocks < 100);
  const deep = join(destination.path, ...Array<string>(3).fill('deep'.repeat(20)));
  const socket = lstatSync(join(deep, 's'.repeat(200)));
  assert.ok(socket.isSocket() && socket.uid === 12 && socket.gid === 34 && (socket.mode & 0o7777) === 0o600);
  assert.equal(lstatSync(deep, { bigint: true }).mtimeNs, 1_400_000_000_123_456_789n);
  const names = await python(destination.path, `print(os.listxattr('d'))`);
  assert.match(names, /trusted\.overlay\.opaque/);
  assert.doesNotMatch(names, /origin/);
  await receive(destination, first.chunks);
  await assertSame(source.path, destination.path);
});

const CHANGES = `
import shutil
os.unlink('plain'); os.mkdir('plain'); open('plain/now a directory', 'w').close()
shutil.rmtree('sticky'); open('sticky', 'w').close()
os.unlink('absolute'); os.mkdir('absolute'); open('absolute/passwd', 'w').write('mine')
os.rename('readonly', 'readonly2'); os.symlink('readonly2', 'readonly')
os.unlink('hard'); open('hard', 'w').write('no longer a link')
with open('d/f', 'a') as f: f.write('more')
os.unlink('fifo'); os.mknod('fifo', stat.S_IFCHR, 0)
os.unlink('whiteout'); os.mknod('whiteout', stat.S_IFCHR | 0o600, os.makedev(1, 3))
os.chmod('short', 0o700); os.unlink('-C'); os.unlink('new\\nline'); os.unlink(b'\\xff\\xfe')
os.setxattr('capable', 'user.more', b'1')
os.removexattr('d/e', 'user.e'); os.removexattr('d', 'system.posix_acl_default')
os.truncate('holes', 1 << 20); os.chown('suid', 0, 0)
`;

void test('a second pass brings every kind of change, and may be repeated', async (t) => {
  const { source, destination } = await pair(t);
  await python(source.path, EVERYTHING);
  const first = await pass(source, destination, { live: true });
  await python(source.path, CHANGES);
  const second = await pass(source, destination, { since: first.sent.snapshot });
  await assertSame(source.path, destination.path);
  assert.equal(await python(destination.path, `print(os.listxattr('d/e'))`), '[]\n');
  await receive(destination, second.chunks);
  await assertSame(source.path, destination.path);
  const third = await pass(source, destination, { since: second.sent.snapshot });
  await assertSame(source.path, destination.path);
  assert.equal(third.sent.deletions, 0);
});

void test('random trees and random changes', async (t) => {
  const { source, destination } = await pair(t);
  let since: Parameters<typeof sendTree>[0]['since'];
  for (let round = 0; round < 25; round += 1) {
    // A walk of changes that a seed repeats; names collide often, so types are replaced often.
    await python(
      source.path,
      `
import random, shutil
r = random.Random(${round} // 5 * 1000 + ${round})
def remove(p):
  shutil.rmtree(p) if os.path.isdir(p) and not os.path.islink(p) else os.unlink(p)
for i in range(60):
  every = [os.path.join(d, n) for d, ds, fs in os.walk('.') for n in ds + fs]
  dirs = ['.'] + [p for p in every if os.path.isdir(p) and not os.path.islink(p)]
  new = os.path.join(r.choice(dirs), r.choice('abcdef'))
  old = r.choice(every) if every else None
  try:
    k = r.randrange(13)
    # Opening a fifo would wait for its other end.
    if k < 3 and (os.path.isfile(new) or not os.path.lexists(new)): open(new, 'wb').write(r.randbytes(r.randrange(9000)))
    elif k == 3: os.mkdir(new, 0o700)
    elif k == 4: os.symlink(r.choice(['/nonexistent/absolute', '..', 'a', 'nowhere']), new)
    elif k == 5: os.mkfifo(new)
    elif k == 6: socket.socket(socket.AF_UNIX).bind(new)
    elif k == 7 and old and r.randrange(2): remove(old)
    elif k == 8 and old: os.rename(old, new)
    elif k == 9 and old: os.link(old, new, follow_symlinks=False)
    elif k == 10 and old and not os.path.islink(old): os.chmod(old, r.randrange(0o10000)); os.setxattr(old, 'trusted.t', b'%d' % i)
    elif k == 11 and old: os.removexattr(old, 'trusted.t', follow_symlinks=False)
    elif k == 12 and old and os.path.isdir(old) and not os.path.islink(old): os.utime(old, ns=(1, r.randrange(10**18)))
  except OSError: pass`,
    );
    const result = await pass(source, destination, since === undefined ? {} : { since });
    await assertSame(source.path, destination.path);
    since = round % 5 === 4 ? undefined : result.sent.snapshot;
  }
});

void test('passes over a tree that is being written to end well, and the last one is exact', async (t) => {
  const { source, destination } = await pair(t);
  const program = `
import random, shutil, time
for i in range(400): open(f'f{i}', 'wb').write(b'x' * 5000)
print(flush=True)
end = time.time() + 1.5
while time.time() < end:
  i = random.randrange(400)
  try:
    k = random.randrange(5)
    if k == 0: os.unlink(f'f{i}')
    elif k == 1: open(f'f{i}', 'ab').write(b'y' * 5000)
    elif k == 2: open(f'f{i}', 'wb').write(b'z')
    elif k == 3: os.rename(f'f{i}', f'f{random.randrange(400)}')
    else: shutil.rmtree('d', True); os.mkdir('d'); open('d/x', 'w').close(); os.symlink('x', f'f{i}')
  except OSError: pass`;
  const writing = python(source.path, program);
  const ended = new AbortController();
  const written = writing.finally(() => ended.abort());
  written.catch(() => undefined);
  let since: Parameters<typeof sendTree>[0]['since'];
  try {
    for (let round = 0; round < 200 && !ended.signal.aborted; round += 1) {
      const result = await pass(source, destination, { live: true, ...(since === undefined ? {} : { since }) });
      since = result.sent.snapshot;
    }
  } finally {
    // The clean-up cannot remove what is still being written.
    await written;
  }
  await pass(source, destination, since === undefined ? {} : { since });
  await assertSame(source.path, destination.path);
});

void test('an overlay upper layer means the same on another host', async (t) => {
  const { base, source, destination } = await pair(t, 'overlay-upper');
  const overlay = async (name: string, upper: string, lower: string): Promise<string> => {
    const merged = join(base, `merged-${name}`);
    await mkdir(merged, { recursive: true });
    await mkdir(join(base, `work-${name}`), { recursive: true });
    const options = `lowerdir=${lower},upperdir=${upper},workdir=${join(base, `work-${name}`)},redirect_dir=on,metacopy=on`;
    await mount(['-t', 'overlay', '-o', options, 'overlay'], merged);
    return merged;
  };
  const lower = join(base, 'lower');
  await mkdir(lower);
  await python(
    lower,
    `
for d in ['gone', 'renamed', 'replaced', 'opened']:
  os.mkdir(d)
  for n in 'abc': open(f'{d}/{n}', 'w').write(d + n)
for n in ['deleted', 'chmodded', 'written', 'linked']: open(n, 'w').write(n * 1000)`,
  );
  // The other host has the same image, in other inodes.
  const otherLower = join(base, 'lower-elsewhere');
  await run('cp', ['-a', lower, otherLower]);
  const here = await overlay('here', source.path, lower);
  await python(
    here,
    `
import shutil
shutil.rmtree('gone'); os.unlink('deleted'); os.rename('renamed', 'moved'); os.unlink('moved/a')
shutil.rmtree('replaced'); os.mkdir('replaced'); open('replaced/new', 'w').write('new')
os.unlink('opened/b'); os.chmod('chmodded', 0o711); open('written', 'a').write('more'); os.link('linked', 'opened/link')
os.mkdir('fresh'); s = socket.socket(socket.AF_UNIX); s.bind('fresh/socket')`,
  );
  const first = await pass(source, destination, { live: true });
  await python(
    here,
    `os.rename('moved', 'moved again'); os.unlink('fresh/socket'); os.rmdir('fresh'); os.unlink('chmodded')`,
  );
  await run('umount', [here]);
  await pass(source, destination, { since: first.sent.snapshot });
  await assertSame(source.path, destination.path);
  const attributes = await python(
    destination.path,
    `print(sorted({x for d, ds, fs in os.walk('.') for n in ds + fs for x in os.listxattr(os.path.join(d, n), follow_symlinks=False)}))`,
  );
  assert.match(attributes, /trusted\.overlay\.redirect/);
  assert.match(attributes, /trusted\.overlay\.opaque/);
  assert.doesNotMatch(attributes, /origin|impure/);
  const again = await overlay('again', source.path, lower);
  const there = await overlay('there', destination.path, otherLower);
  await assertSame(again, there);
  assert.deepEqual(readdirSync(join(there, 'moved again')).sort(), ['b', 'c']);
  assert.equal(readFileSync(join(there, 'written'), 'utf8').slice(-4), 'more');
});

void test('what is mounted in a tree stays behind', async (t) => {
  const { base, source, destination } = await pair(t);
  const elsewhere = join(base, 'elsewhere');
  for (const directory of [elsewhere, join(source.path, 'mounted'), join(source.path, 'bound')]) await mkdir(directory);
  await writeFile(join(elsewhere, 'inside'), 'of the same file system');
  await mount(['-t', 'tmpfs', 'tmpfs'], join(source.path, 'mounted'));
  await mount(['--bind', elsewhere], join(source.path, 'bound'));
  await writeFile(join(source.path, 'mounted/inside'), 'x');
  const { sent } = await pass(source, destination);
  assert.deepEqual(sent.snapshot.mounts, ['bound', 'mounted']);
  assert.deepEqual(readdirSync(join(destination.path, 'mounted')), []);
  assert.deepEqual(readdirSync(join(destination.path, 'bound')), []);
});

void test('a full destination is said to be full', async (t) => {
  const { source, destination } = await pair(t);
  await mount(['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs'], destination.path);
  await writeFile(join(source.path, 'large'), Buffer.alloc(3_000_000, 1));
  await assert.rejects(pass(source, destination), { code: 'UMS_E_NO_ROOM' });
});

void test('an immutable file in the way is named', async (t) => {
  const { source, destination } = await pair(t);
  await writeFile(join(source.path, 'immutable'), 'new');
  await writeFile(join(destination.path, 'immutable'), 'old');
  await run('chattr', ['+i', join(destination.path, 'immutable')]);
  await assert.rejects(pass(source, destination), (error: Error & { code?: string; mend?: string }) => {
    assert.equal(error.code, 'UMS_E_TRANSFER');
    assert.match(error.message, /immutable.*Operation not permitted/);
    assert.match(error.mend ?? '', /chattr/);
    return true;
  });
});

function confinedProcesses(target: string): string[] {
  return readdirSync('/proc').filter((name) => {
    if (!/^[0-9]+$/.test(name) || !existsSync(`/proc/${name}/cmdline`)) return false;
    return readFileSync(`/proc/${name}/cmdline`, 'latin1').includes(target);
  });
}

void test('a pass that is broken off leaves no process and no mount', async (t) => {
  const { source, destination } = await pair(t);
  await writeFile(join(source.path, 'large'), Buffer.alloc(8_000_000, 1));
  const before = readFileSync('/proc/self/mountinfo', 'latin1');
  const controller = new AbortController();
  const sending = sendTree({ tree: source, live: false, signal: controller.signal });
  const pass = receiveTree(destination, sending.stream, {
    limits: LIMITS,
    signal: controller.signal,
    onBytes: () => controller.abort(),
  });
  await assert.rejects(pass, { name: 'AbortError' });
  for (let tries = 0; tries < 100 && confinedProcesses(destination.path).length > 0; tries += 1) await setTimeout(20);
  assert.deepEqual(confinedProcesses(destination.path), []);
  assert.equal(readFileSync('/proc/self/mountinfo', 'latin1'), before);
});
