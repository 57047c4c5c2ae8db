import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { mkdtemp } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { run } from '#src/telemetry/exec.ts';
import {
  digestTree,
  type ReceiveResult,
  receiveTree,
  type SendOptions,
  type SendResult,
  sendTree,
  type TreeLocation,
} from '#src/transfer/tree/index.ts';

/** A hundred thousand files are made and removed; on a busy disk each takes more than a child's usual minute. */
const SLOW_DISK_MS = 280_000;

export const LIMITS = { bytes: 2 ** 40, entries: 5_000_000 };

/**
 * A directory that goes away with the test. Clean-up is one hook, in this order: unmount what is mounted below it, make
 * sure that nothing is any more, and only then remove. To rm, a bind mount of the same file system is no boundary, so a
 * removal with one left would reach into what is mounted: it is refused, and the directory stays for a person to look at.
 */
export async function workspace(t: TestContext): Promise<string> {
  assert.equal(process.getuid?.(), 0, 'these tests need root');
  const directory = await mkdtemp(join(tmpdir(), 'ums-e2e-tree-'));
  t.after(async () => {
    for (const point of mountsBelow(directory).toReversed()) await run('umount', [point]);
    assert.deepEqual(mountsBelow(directory), [], 'something is still mounted in the workspace, so it is not removed');
    await run('find', [directory, '-xdev', '-type', 'f', '-name', 'immutable*', '-exec', 'chattr', '-i', '{}', '+']);
    await run('find', [directory, '-xdev', '-delete'], { timeout_ms: SLOW_DISK_MS });
  });
  return directory;
}

/** Mount points below a directory, in the order in which they were mounted. Names in a workspace need no escapes. */
function mountsBelow(directory: string): string[] {
  const points = readFileSync('/proc/self/mountinfo', 'latin1')
    .split('\n')
    .map((line) => line.split(' ')[4] ?? '');
  return points.filter((point) => point.startsWith(`${directory}/`));
}

/** Runs a Python program in a directory: Node has no calls for extended attributes and device files. */
export async function python(directory: string, program: string): Promise<string> {
  const result = await run('python3', ['-c', `import os, socket, struct, stat\n${program}`], {
    cwd: directory,
    timeout_ms: SLOW_DISK_MS,
  });
  return result.stdout;
}

/** Mounts inside of a workspace; its clean-up unmounts. Bind mounts may only show what lies in a workspace too. */
export async function mount(args: readonly string[], target: string): Promise<void> {
  assert.match(target, /\/ums-e2e-tree-[^/]+\//, 'only below a workspace');
  const bound = args.indexOf('--bind');
  if (bound >= 0) assert.match(args[bound + 1] ?? '', /\/ums-e2e-tree-[^/]+\//, 'binds only what is in a workspace');
  await run('mount', [...args, target]);
}

export interface PassResult {
  sent: SendResult;
  received: ReceiveResult;
  chunks: Uint8Array[];
}

/** Sends one pass and keeps its bytes, so that it can be received again. */
export async function pass(
  source: TreeLocation,
  destination: TreeLocation,
  options: Partial<SendOptions> = {},
): Promise<PassResult> {
  const sending = sendTree({ tree: source, live: false, ...options });
  const chunks: Uint8Array[] = [];
  for await (const chunk of sending.stream) chunks.push(chunk);
  const received = await receive(destination, chunks);
  const sent = sending.result();
  assert.equal(received.bytes, sent.bytes);
  assert.equal(received.files, sent.files);
  assert.equal(received.deletions, sent.deletions);
  return { sent, received, chunks };
}

export async function receive(destination: TreeLocation, chunks: Iterable<Uint8Array>): Promise<ReceiveResult> {
  async function* body(): AsyncGenerator<Uint8Array, void, undefined> {
    yield* chunks;
  }
  return receiveTree(destination, body(), { limits: LIMITS });
}

export async function assertSame(source: string, destination: string): Promise<void> {
  const [expected, actual] = [
    await digestTree(source, { listing: true }),
    await digestTree(destination, { listing: true }),
  ];
  assert.deepEqual(actual.listing, expected.listing);
  assert.equal(actual.digest, expected.digest);
}
