import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { receiveTree, sendTree, sharedWritableMappings, type TreeLocation } from '#src/transfer/tree/index.ts';
import { assertSame, LIMITS, mount, pass, python, workspace } from './tree-support.ts';

async function pair(t: Parameters<typeof workspace>[0]) {
  const base = await workspace(t);
  const source: TreeLocation = { path: join(base, 'source'), kind: 'plain' };
  const destination: TreeLocation = { path: join(base, 'destination'), kind: 'plain' };
  await mkdir(source.path);
  await mkdir(destination.path);
  return { source, destination };
}

async function timed(source: TreeLocation, destination: TreeLocation, since?: Parameters<typeof sendTree>[0]['since']) {
  const start = performance.now();
  const sending = sendTree({ tree: source, live: false, ...(since === undefined ? {} : { since }) });
  await receiveTree(destination, sending.stream, { limits: LIMITS });
  return { result: sending.result(), duration_ms: performance.now() - start };
}

void test('100,000 small files, and again without a change', { timeout: 300_000 }, async (t) => {
  const { source, destination } = await pair(t);
  await python(
    source.path,
    `
for d in range(100):
  os.mkdir(f'{d}')
  for f in range(1000): open(f'{d}/{f}', 'wb').write(b'x' * 100)
import time; time.sleep(2.1)`,
  );
  const first = await timed(source, destination);
  assert.equal(first.result.files, 100_101);
  const second = await timed(source, destination, first.result.snapshot);
  assert.equal(second.result.files, 0);
  t.diagnostic(
    `first pass ${first.duration_ms.toFixed(0)} ms, unchanged second pass ${second.duration_ms.toFixed(0)} ms`,
  );
  await assertSame(source.path, destination.path);
});

void test('one file of 1 GiB', { timeout: 300_000 }, async (t) => {
  const { source, destination } = await pair(t);
  await mount(['-t', 'tmpfs', 'tmpfs'], source.path);
  await mount(['-t', 'tmpfs', 'tmpfs'], destination.path);
  await python(source.path, `f = open('large', 'wb')\nfor i in range(1024): f.write(os.urandom(1 << 20))`);
  const { duration_ms } = await timed(source, destination);
  t.diagnostic(
    `${duration_ms.toFixed(0)} ms, ${(1_073_741_824 / 1e6 / (duration_ms / 1000)).toFixed(0)} MB/s in memory`,
  );
  await assertSame(source.path, destination.path);
});

void test('writes through a mapping that move no time arrive', { timeout: 60_000 }, async (t) => {
  const { source, destination } = await pair(t);
  await mount(['-t', 'tmpfs', 'tmpfs'], source.path);
  await python(
    source.path,
    `open('mapped', 'wb').write(b'a' * 4096)\nopen('idle', 'wb').write(b'a')\nimport time; time.sleep(2.1)`,
  );
  const program = `
import mmap, sys
f = open('mapped', 'r+b'); m = mmap.mmap(f.fileno(), 0)
m[0] = 98; print(flush=True)
sys.stdin.readline(); m[1] = 99; print(flush=True)
sys.stdin.readline()`;
  const child = spawn('python3', ['-c', program], { cwd: source.path, stdio: ['pipe', 'pipe', 'inherit'] });
  try {
    const line = (): Promise<unknown> => new Promise((resolve) => child.stdout.once('data', resolve));
    await line();
    const first = await pass(source, destination, { live: true });
    const written = line();
    child.stdin.write('\n');
    await written;
    const alwaysDirty = await sharedWritableMappings([child.pid ?? 0]);
    const second = await pass(source, destination, { since: first.sent.snapshot, alwaysDirty });
    await assertSame(source.path, destination.path);
    assert.equal(second.sent.files, 2, 'the mapped file and its directory');
  } finally {
    // It works in the file system that the clean-up unmounts, so it has to be gone by then.
    const exited = once(child, 'exit');
    child.kill('SIGKILL');
    await exited;
  }
});
