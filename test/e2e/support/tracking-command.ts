import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { z } from 'zod';
import { openTracker, ProcessMemory, type FinalPages } from '#src/checkpoint/memory/index.ts';
import { PAGE_BYTES, type PageRange } from '#src/transfer/pages/model.ts';
import { run } from '#src/telemetry/exec.ts';

/**
 * `node tracking-command.ts KIND SEED ROUNDS`, inside a test host: tracks the memory of a running mosaic with one kind of
 * tracker, keeps a copy of what it reports as a destination would, freezes mosaic, and compares the copy with all of its
 * memory. The last line is one of JSON. It ends with 1 when one page would have been wrong.
 */
const [kind, seed, rounds] = z
  .tuple([z.enum(['written', 'soft-dirty', 'hash']), z.coerce.number().int(), z.coerce.number().int().min(1).max(20)])
  .parse(process.argv.slice(2));
const WAIT_LIMIT_MS = 60_000;
const START_LIMIT_MS = 120_000;
const BETWEEN_ROUNDS_MS = 200;
const GROUP = '/sys/fs/cgroup/ums-tracking';
const ZEROES = Buffer.alloc(PAGE_BYTES);

/** Content of pages by number, as a destination holds it. */
type Copy = Map<number, Buffer>;

const at = (name: string): string => join(GROUP, name);
const pids = (): number[] =>
  readFileSync(at('cgroup.procs'), 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map(Number);

async function freeze(on: boolean): Promise<void> {
  writeFileSync(at('cgroup.freeze'), on ? '1' : '0');
  await until('the group freezes', () => readFileSync(at('cgroup.events'), 'utf8').includes(`frozen ${on ? 1 : 0}`));
}

async function until(what: string, isSo: () => boolean): Promise<void> {
  const limit = Date.now() + WAIT_LIMIT_MS;
  while (!isSo()) {
    assert.ok(Date.now() < limit, `${what} within ${WAIT_LIMIT_MS} ms`);
    await sleep(2);
  }
}

function removed(directory: string): boolean {
  try {
    rmdirSync(directory);
    return true;
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'EBUSY') return false;
    throw error;
  }
}

function* pagesOf(ranges: readonly PageRange[]): Generator<number> {
  for (const { first, count } of ranges) for (let page = first; page < first + count; page += 1) yield page;
}

/** Reads pages as they are now; those that are not there any more are not in the copy either. */
function read(memory: ProcessMemory, ranges: readonly PageRange[], copy: Copy): void {
  for (const page of pagesOf(ranges)) {
    const content = Buffer.alloc(PAGE_BYTES);
    if (memory.read(page, 1, content) === 1) copy.set(page, content);
    else copy.delete(page);
  }
}

async function withMosaic<T>(work: (ask: (word: string) => Promise<boolean>) => Promise<T>): Promise<T> {
  const directory = mkdtempSync(join(tmpdir(), 'ums-tracking-'));
  mkdirSync(GROUP, { recursive: true });
  const mosaic = `exec mosaic run --dir ${directory} --seed ${seed} --mib 8 ${process.env['UMS_TRACKING_LOAD'] ?? '--rate 2000 --churn 100 --forks 5'}`;
  const child = spawn('sh', ['-ec', `echo 0 >${at('cgroup.procs')}; ${mosaic}`], { stdio: ['ignore', 2, 2] });
  const ask = async (word: string): Promise<boolean> => {
    const args = ['ask', '--dir', directory, '--timeout-ms', String(START_LIMIT_MS), word];
    const { exitCode, stderr } = await run('mosaic', args, { timeout_ms: 2 * START_LIMIT_MS, okExitCodes: [0, 1, 3] });
    if (stderr !== '') process.stderr.write(stderr);
    return exitCode === 0;
  };
  try {
    assert.ok(await ask('status'), 'mosaic runs');
    return await work(ask);
  } finally {
    writeFileSync(at('cgroup.freeze'), '0');
    writeFileSync(at('cgroup.kill'), '1');
    if (child.exitCode === null && child.signalCode === null)
      await new Promise((resolve) => child.once('exit', resolve));
    await until('the group is empty', () => readFileSync(at('cgroup.events'), 'utf8').includes('populated 0'));
    // The kernel lets the last process go a moment after it tells so.
    await until('the group goes', () => removed(GROUP));
    rmSync(directory, { recursive: true, force: true });
  }
}

interface Wrong {
  pid: number;
  page: string;
  what: string;
}

/** What a destination that did as the tracker says would have wrong. */
async function wrongPages(pid: number, final: FinalPages, copy: Copy): Promise<{ wrong: Wrong[]; compared: number }> {
  const memory = await ProcessMemory.open(pid);
  const wrong: Wrong[] = [];
  const say = (page: number, what: string) => wrong.push({ pid, page: (page * PAGE_BYTES).toString(16), what });
  try {
    read(memory, final.changed, copy);
    // With `confirm` both sides compare digests, and what differs is sent.
    if (final.proof === 'confirm') read(memory, final.rest, copy);
    const told = new Set([...pagesOf(final.changed), ...pagesOf(final.rest)]);
    const there = [...pagesOf(await memory.present())];
    const now = Buffer.alloc(PAGE_BYTES);
    for (const page of there) {
      if (memory.read(page, 1, now) !== 1) continue;
      const held = copy.get(page);
      if (!told.has(page) && !now.equals(ZEROES)) say(page, 'is there and not told of');
      else if (told.has(page) && held === undefined) say(page, 'is said to be unchanged and was never reported');
      else if (told.has(page) && held?.equals(now) === false) say(page, 'is said to be unchanged and differs');
    }
    return { wrong, compared: there.length };
  } finally {
    memory.close();
  }
}

const result = await withMosaic(async (ask) => {
  const tracker = await openTracker({ prefer: kind, pause: () => freeze(true), unpause: () => freeze(false) });
  try {
    assert.equal(tracker.kind, kind, tracker.fallback);
    const copies = new Map<number, Copy>();
    const reported: number[] = [];
    for (let round = 0; round < rounds; round += 1) {
      const found = await tracker.round(pids(), new AbortController().signal);
      let changed = 0;
      for (const pid of copies.keys()) if (!found.has(pid)) copies.delete(pid);
      for (const [pid, pages] of found) {
        const copy = copies.get(pid) ?? new Map<number, Buffer>();
        copies.set(pid, copy);
        const memory = await ProcessMemory.open(pid);
        read(memory, pages.changed, copy);
        memory.close();
        for (const page of pagesOf(pages.gone)) copy.delete(page);
        changed += [...pagesOf(pages.changed)].length;
      }
      reported.push(changed);
      await sleep(BETWEEN_ROUNDS_MS);
    }
    await freeze(true);
    const last = await tracker.final(pids());
    const wrong: Wrong[] = [];
    let compared = 0;
    for (const [pid, final] of last) {
      const one = await wrongPages(pid, final, copies.get(pid) ?? new Map());
      wrong.push(...one.wrong);
      compared += one.compared;
    }
    await tracker.close();
    await freeze(false);
    const rest = [...last.values()].reduce((sum, final) => sum + [...pagesOf(final.rest)].length, 0);
    const changed = [...last.values()].reduce((sum, final) => sum + [...pagesOf(final.changed)].length, 0);
    return {
      kind,
      rounds: reported,
      compared,
      changed,
      rest,
      processes: last.size,
      wrong: wrong.length,
      first: wrong.slice(0, 10),
      untouched: await ask('verify'),
    };
  } finally {
    await tracker.close();
  }
});
process.stdout.write(`${JSON.stringify(result)}\n`);
process.exitCode = result.wrong === 0 && result.untouched ? 0 : 1;
