import { countPages, intersectRanges, subtractRanges } from '#src/transfer/pages/model.ts';
import { afterEach, describe, expect, it } from 'vitest';
import { type Child, startChild } from './child.test-support.ts';
import { HashTracker } from './hash-tracker.ts';
import { ProcessMemory } from './process-memory.ts';

const children: Child[] = [];
async function start(megabytes: number): Promise<Child> {
  const child = await startChild(megabytes);
  children.push(child);
  return child;
}
afterEach(async () => {
  await Promise.all(children.splice(0).map((child) => child.end()));
});

const going = new AbortController().signal;

describe('ProcessMemory', () => {
  it('reads content, stops where a mapping ends, and knows what is present', async () => {
    const child = await start(4);
    await child.tell('fill', 10, 2, 65);
    const memory = await ProcessMemory.open(child.pid);
    const target = Buffer.alloc(4 * 4096);
    expect(memory.read(child.first + 9, 4, target)).toBe(4);
    expect([target[4095], target[4096], target[3 * 4096 - 1], target[3 * 4096]]).toEqual([1, 65, 65, 1]);
    expect(memory.read(16, 4, target)).toBe(0);
    await child.tell('drop', 20, 5);
    const present = await memory.present([{ first: child.first, count: 100 }]);
    expect(present).toEqual([
      { first: child.first, count: 20 },
      { first: child.first + 25, count: 75 },
    ]);
    memory.close();
  });

  it('reads the new memory after an exec, and nothing after the end', async () => {
    const child = await start(1);
    const memory = await ProcessMemory.open(child.pid);
    const target = Buffer.alloc(4096);
    expect(memory.read(child.first, 1, target)).toBe(1);
    const first = Math.ceil(Number(await child.tell('exec')) / 4096);
    expect(memory.read(first, 1, target)).toBe(1);
    expect(target[100]).toBe(7);
    await child.end();
    expect(memory.read(first, 1, target)).toBe(0);
    expect(await memory.present()).toEqual([]);
    expect(memory.exists()).toBe(false);
    memory.close();
    memory.close();
  });
});

describe('HashTracker', () => {
  it('reports what changed, what is gone, and leaves the rest to be confirmed', async () => {
    const child = await start(8);
    const own = [{ first: child.first, count: 2000 }];
    const tracker = new HashTracker();
    const all = (await tracker.round([child.pid], going)).get(child.pid);
    expect(countPages(intersectRanges(all?.changed ?? [], own))).toBe(2000);
    expect(all?.gone).toEqual([]);
    await child.tell('fill', 7, 3, 66);
    await child.tell('drop', 1000, 4);
    const next = (await tracker.round([child.pid], going)).get(child.pid);
    expect(intersectRanges(next?.changed ?? [], own)).toEqual([{ first: child.first + 7, count: 3 }]);
    expect(next?.gone).toEqual([{ first: child.first + 1000, count: 4 }]);
    await child.tell('fill', 1001, 1, 5);
    process.kill(child.pid, 'SIGSTOP');
    const last = (await tracker.final([child.pid])).get(child.pid);
    expect(last?.proof).toBe('confirm');
    expect(intersectRanges(last?.changed ?? [], own)).toEqual([
      { first: child.first + 7, count: 3 },
      { first: child.first + 1001, count: 1 },
    ]);
    expect(subtractRanges(own, last?.rest ?? [])).toEqual([
      { first: child.first + 7, count: 3 },
      { first: child.first + 1000, count: 4 },
    ]);
    await tracker.close();
  });

  it('leaves out processes that vanished, and starts afresh after an abort', async () => {
    const child = await start(1);
    const tracker = new HashTracker();
    await expect(tracker.round([child.pid], AbortSignal.abort())).rejects.toThrow();
    const pages = (await tracker.round([child.pid, 2 ** 22 + 1], going)).get(child.pid);
    expect(pages?.changed).not.toEqual([]);
    await child.end();
    expect(await tracker.round([child.pid], going)).toEqual(new Map());
    expect(await tracker.final([child.pid])).toEqual(new Map());
  });
});
