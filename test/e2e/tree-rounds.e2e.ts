import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { appendFileSync, existsSync, lstatSync, readdirSync, readFileSync } from 'node:fs';
import { appendFile, mkdir, mkdtemp, rm, rmdir, writeFile } from 'node:fs/promises';
import { createConnection, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setImmediate, setTimeout } from 'node:timers/promises';
import { type NamedTree, serveTrees, sharedWritableMappings, TreesSender } from '#src/transfer/tree/index.ts';
import { assertSame, LIMITS, python, workspace } from './tree-support.ts';

const MIB = 1024 * 1024;

/** Two ends of a connection, as the channel gives them. */
async function connection(t: TestContext): Promise<[Socket, Socket]> {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  assert.ok(address !== null && typeof address === 'object');
  const there = once(server, 'connection');
  const here = createConnection({ port: address.port, host: '127.0.0.1', allowHalfOpen: true });
  const [accepted]: Socket[] = await there;
  assert.ok(accepted !== undefined);
  for (const socket of [here, accepted]) socket.on('error', () => undefined).setNoDelay(true);
  t.after(() => {
    here.destroy();
    accepted.destroy();
    server.close();
  });
  return [here, accepted];
}

async function session(t: TestContext, names: readonly string[] = ['tree']) {
  const base = await workspace(t);
  const trees: NamedTree[] = [];
  const there = new Map<string, NamedTree>();
  for (const name of names) {
    const tree: NamedTree = { id: name, path: join(base, 'source', name), kind: 'plain' };
    trees.push(tree);
    there.set(name, { ...tree, path: join(base, 'destination', name) });
    await mkdir(tree.path, { recursive: true });
    await mkdir(join(base, 'destination', name), { recursive: true });
  }
  const [here, accepted] = await connection(t);
  const served = serveTrees(accepted, { trees: there, admit: () => undefined, limits: LIMITS });
  served.catch(() => undefined);
  const path = (name: string, side: 'source' | 'destination' = 'source') => join(base, side, name);
  const same = async () => {
    for (const name of names) await assertSame(path(name), path(name, 'destination'));
  };
  return { base, sender: new TreesSender(here, trees), served, path, same, here };
}

void test('rounds over several trees, and a final one that is exact', async (t) => {
  const { sender, served, path, same } = await session(t, ['upper', 'volume:a', 'empty']);
  for (let file = 0; file < 50; file += 1) await writeFile(join(path('upper'), `f${file}`), `${file}`);
  await mkdir(join(path('volume:a'), 'd'));
  const first = await sender.round({});
  assert.equal(first.files, 54);
  await same();
  await setTimeout(2100);
  assert.equal((await sender.round({})).entries, 54);
  const quiet = await sender.round({});
  assert.equal(quiet.files, 0);
  assert.ok(quiet.bytes < 1000);
  await sender.prepare();
  await appendFile(join(path('upper'), 'f7'), 'more');
  await rm(join(path('upper'), 'f8'));
  await writeFile(join(path('volume:a'), 'd/new'), 'new');
  const last = await sender.final({});
  assert.deepEqual([last.files, last.deletions], [5, 1]);
  sender.close();
  await served;
  await same();
});

void test('what CRIU makes in /tmp while it dumps neither travels nor disturbs', { timeout: 60_000 }, async (t) => {
  const { sender, served, path } = await session(t, ['upper', 'tmp-volume', 'bare']);
  const [tmp, volume, bare] = [join(path('upper'), 'tmp'), path('tmp-volume'), path('bare')];
  await mkdir(tmp);
  await mkdir(join(tmp, 'cr-tmpfs.Served'));
  for (let file = 0; file < 300; file += 1) await writeFile(join(tmp, `f${file}`), 'x');
  await sender.round({});
  const times = new Map<string, bigint>();
  for (let repetition = 0; repetition < 30; repetition += 1) {
    await sender.prepare();
    // The service's own last change before the freeze, in the very directory.
    await writeFile(join(tmp, `own-${repetition}`), 'own');
    await rm(join(tmp, `own-${repetition - 1}`), { force: true });
    if (repetition === 0) await mkdir(join(tmp, 'cr-tmpfs.OwnOne'));
    for (const directory of [path('upper'), tmp, volume, bare]) {
      times.set(directory, lstatSync(directory, { bigint: true }).mtimeNs);
    }
    const pass = sender.final({});
    const criu = (async () => {
      for (let turn = 0; turn < 20; turn += 1) {
        // As CRIU does it; an overlay makes /tmp in its upper layer for that where it was not.
        await mkdir(join(bare, 'tmp'), { recursive: true });
        for (const place of [tmp, volume, join(bare, 'tmp')]) {
          const made = await mkdtemp(join(place, 'cr-tmpfs.'));
          await setImmediate();
          await rmdir(made);
        }
      }
    })();
    await Promise.all([pass, criu]);
    await rmdir(join(bare, 'tmp'));
  }
  sender.close();
  await served;
  for (const name of ['upper', 'tmp-volume', 'bare']) {
    const there = path(name, 'destination');
    assert.equal(lstatSync(there, { bigint: true }).mtimeNs, times.get(path(name)), name);
  }
  const there = join(path('upper', 'destination'), 'tmp');
  assert.equal(lstatSync(there, { bigint: true }).mtimeNs, times.get(tmp), 'the time of /tmp is the service’s');
  const left = readdirSync(there).filter((name) => name.startsWith('cr-tmpfs'));
  assert.deepEqual(left.sort(), ['cr-tmpfs.OwnOne', 'cr-tmpfs.Served']);
  assert.ok(existsSync(join(there, 'own-29')) && !existsSync(join(there, 'own-28')));
  assert.deepEqual(readdirSync(path('bare', 'destination')), []);
  assert.deepEqual(readdirSync(path('tmp-volume', 'destination')), []);
});

void test('a change while the service is frozen is an error, also beside CRIU’s directory', async (t) => {
  const frozen = /changed although the service is frozen/;
  const scenes = [
    // Bytes go out first when the walk is over and nothing has been read yet.
    { what: 'before tar reads it', size: 1, rounds: 1, afterBytes: 0, message: frozen },
    { what: 'before it is compared', size: 3 * MIB, rounds: 1, afterBytes: 0, message: frozen },
    // What waits in pipes and buffers is far less, so tar is still at it.
    { what: 'while tar reads it', size: 64 * MIB, rounds: 0, afterBytes: MIB, message: /changed as we read it/ },
  ];
  for (const { what, size, rounds, afterBytes, message } of scenes) {
    const { sender, path } = await session(t);
    const files = Array.from({ length: rounds * 20 + 1 }, (_, at) => join(path('tree'), `f${at}`));
    const change = (): void => {
      for (const file of files) appendFileSync(file, 'y');
    };
    for (const file of files) await writeFile(file, Buffer.alloc(size, 'x'));
    for (let round = 0; round < rounds; round += 1) await sender.round({});
    change();
    let bytes = 0;
    const onBytes = (count: number): void => {
      const isBefore = bytes <= afterBytes;
      bytes += count;
      if (isBefore && bytes > afterBytes) change();
    };
    await assert.rejects(sender.final({ onBytes }), { code: 'UMS_E_TRANSFER', message }, what);
  }
});

void test('what fails at the destination is told by its own words, and the session is over', async (t) => {
  const { sender, served, path } = await session(t);
  await writeFile(join(path('tree'), 'immutable'), 'new');
  await writeFile(join(path('tree', 'destination'), 'immutable'), 'old');
  await python(path('tree', 'destination'), `import subprocess; subprocess.check_call(['chattr', '+i', 'immutable'])`);
  await assert.rejects(sender.round({}), { code: 'UMS_E_TRANSFER', message: /Operation not permitted/ });
  await assert.rejects(served, { code: 'UMS_E_TRANSFER' });
  await assert.rejects(sender.round({}));
});

function childrenOf(base: string): string[] {
  return readdirSync('/proc').filter((name) => {
    if (!/^[0-9]+$/.test(name)) return false;
    try {
      return readFileSync(`/proc/${name}/cmdline`, 'latin1').includes(base);
    } catch {
      return false;
    }
  });
}

void test('a session that is cancelled or loses its connection leaves no process', async (t) => {
  for (const how of ['cancel', 'cut'] as const) {
    const { base, sender, served, path, here } = await session(t);
    await writeFile(join(path('tree'), 'large'), Buffer.alloc(30_000_000, 1));
    await sender.round({});
    await sender.prepare();
    assert.ok(childrenOf(base).length > 0);
    await writeFile(join(path('tree'), 'large'), Buffer.alloc(30_000_000, 2));
    const controller = new AbortController();
    const end = (): void => (how === 'cancel' ? controller.abort() : void here.destroy());
    await assert.rejects(sender.final({ signal: controller.signal, onBytes: end }));
    await served.catch(() => undefined);
    for (let tries = 0; tries < 100 && childrenOf(base).length > 0; tries += 1) await setTimeout(20);
    assert.deepEqual(childrenOf(base), [], how);
  }
});

void test('of large files only what changed travels, and they arrive exact', { timeout: 120_000 }, async (t) => {
  const { sender, served, path, same } = await session(t);
  await python(
    path('tree'),
    `
def acl(*entries):
  return struct.pack('<I', 2) + b''.join(struct.pack('<HHI', *entry) for entry in entries)
for name in ['page', 'log', 'shorter', 'longer', 'mode', 'replaced', 'linked', 'holes', 'same', 'attributes']:
  with open(name, 'wb') as f: f.write(os.urandom(3 << 20) + b'odd')
with open('holes', 'wb') as f:
  f.truncate(8 << 20); f.seek(5 << 20); f.write(os.urandom(100000)); f.seek(1 << 20); f.write(os.urandom(4 << 20))
os.link('linked', 'other name')
os.setxattr('attributes', 'user.goes', b'1'); os.setxattr('attributes', 'trusted.stays', b'\\0binary\\n')
import time; time.sleep(2.1)`,
  );
  await sender.round({});
  assert.ok((await sender.round({})).bytes < 1000);
  await sender.prepare();
  await python(
    path('tree'),
    `
def acl(*entries):
  return struct.pack('<I', 2) + b''.join(struct.pack('<HHI', *entry) for entry in entries)
def at(name, offset, data):
  with open(name, 'r+b') as f: f.seek(offset); f.write(data)
at('page', 1 << 20, b'changed'); at('holes', 1 << 20, b'changed'); at('linked', 5, b'changed')
with open('log', 'ab') as f: f.write(b'one more line\\n')
os.truncate('shorter', 2000000)
os.truncate('longer', 40 << 20); at('longer', 30 << 20, b'far out')
at('mode', 0, b'x'); os.chown('mode', 12, 34); os.chmod('mode', 0o6711); os.utime('mode', ns=(1, -1500000001))
os.rename('replaced', 'gone'); os.unlink('gone'); open('replaced', 'wb').write(b'new' * 200000)
at('attributes', 77, b'x'); os.removexattr('attributes', 'user.goes'); os.setxattr('attributes', 'user.new', b'2')
nobody = 0xffffffff
os.setxattr('attributes', 'system.posix_acl_access', acl((1, 6, nobody), (2, 5, 1234), (4, 4, nobody), (16, 5, nobody), (32, 0, nobody)))`,
  );
  const last = await sender.final({});
  // One file was replaced, and one has two names: these go whole.
  const whole = 600_000 + 3 * MIB;
  assert.ok(last.bytes < whole + 1.5 * MIB, `${last.bytes} bytes`);
  sender.close();
  await served;
  await same();
  assert.ok(lstatSync(join(path('tree', 'destination'), 'longer')).blocks * 512 < 5 * MIB, 'holes stay holes');
});

void test('random changes of large files through many rounds', { timeout: 120_000 }, async (t) => {
  const { sender, served, path, same } = await session(t);
  for (let round = 0; round < 12; round += 1) {
    await python(
      path('tree'),
      `
import random
r = random.Random(${round})
for name in 'abcdef':
  if not os.path.exists(name) or r.randrange(12) == 0:
    if os.path.exists(name) and r.randrange(2): os.unlink(name)
    with open(name, 'wb') as f: f.write(r.randbytes(r.randrange(2 << 20)))
  with open(name, 'r+b') as f:
    for i in range(r.randrange(4)):
      k = r.randrange(6); size = os.path.getsize(name)
      if k < 3: f.seek(r.randrange(size + 70000)); f.write(r.randbytes(r.randrange(200000)))
      elif k == 3: f.truncate(r.randrange(size + 1))
      elif k == 4: f.truncate(size + r.randrange(1 << 20))
      else: f.seek(r.randrange(size + 1)); f.write(bytes(r.randrange(300000)))
  if r.randrange(8) == 0: os.replace(name, 'abcdef'[r.randrange(6)])`,
    );
    if (round === 11) await sender.final({});
    else await sender.round({});
    await same();
  }
  sender.close();
  await served;
});

void test('large files that are written while they are read arrive exact in the end', {
  timeout: 60_000,
}, async (t) => {
  const { sender, served, path, same } = await session(t);
  const program = `
import random, time
for n in 'abc': open(n, 'wb').write(os.urandom(4 << 20))
print(flush=True)
end = time.time() + 4
while time.time() < end:
  n = random.choice('abc'); k = random.randrange(20)
  if k == 0: os.truncate(n, random.randrange(1, 4 << 20))
  elif k == 1: os.replace(n, 'moved'); open(n, 'wb').write(os.urandom(1 << 20))
  else:
    # Beyond the end too, which leaves holes: tar writes nonsense of such a file when it changes in the very moment.
    with open(n, 'r+b') as f: f.seek(random.randrange(os.path.getsize(n) + 70000)); f.write(os.urandom(5000))`;
  const ended = new AbortController();
  const written = python(path('tree'), program).finally(() => ended.abort());
  written.catch(() => undefined);
  try {
    for (let round = 0; round < 200 && !ended.signal.aborted; round += 1) await sender.round({});
  } finally {
    // The clean-up cannot remove what is still being written.
    await written;
  }
  await sender.final({});
  sender.close();
  await served;
  await same();
});

void test('of a large file written through a mapping what changed travels', { timeout: 60_000 }, async (t) => {
  const { sender, served, path, same } = await session(t);
  await writeFile(join(path('tree'), 'mapped'), Buffer.alloc(2 * MIB, 1));
  await setTimeout(2100);
  const program = `
import mmap, sys
f = open('mapped', 'r+b'); m = mmap.mmap(f.fileno(), 0); m[0] = 98; print(flush=True)
sys.stdin.readline(); m[1] = 99; print(flush=True); sys.stdin.readline()`;
  const child = spawn('python3', ['-c', program], { cwd: path('tree'), stdio: ['pipe', 'pipe', 'inherit'] });
  try {
    const line = (): Promise<unknown> => new Promise((resolve) => child.stdout.once('data', resolve));
    await line();
    await sender.round({});
    const after = line();
    child.stdin.write('\n');
    await after;
    const last = await sender.final({ alwaysDirty: sharedWritableMappings([child.pid ?? 0]) });
    assert.ok(last.bytes < 100_000, `${last.bytes} bytes`);
    sender.close();
    await served;
    await same();
  } finally {
    const exited = once(child, 'exit');
    child.kill('SIGKILL');
    await exited;
  }
});
