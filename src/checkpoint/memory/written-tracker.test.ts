import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { countPages, intersectRanges } from '#src/transfer/pages/model.ts';
import { afterEach, describe, expect, it } from 'vitest';
import { reasonAgainst } from './check.test-support.ts';
import { type Child, startChild } from './child.test-support.ts';
import { openTracker } from './open-tracker.ts';

const going = new AbortController().signal;
const nothing = async () => {};
const children: Child[] = [];

const reason = await reasonAgainst('written');
if (reason !== '') process.stderr.write(`tests of written pages are skipped: ${reason}\n`);

async function start(megabytes: number): Promise<Child> {
  const child = await startChild(megabytes);
  children.push(child);
  return child;
}
afterEach(async () => {
  await Promise.all(children.splice(0).map((child) => child.end()));
});

const open = () => openTracker({ prefer: 'written', pause: nothing, unpause: nothing });

describe.skipIf(reason !== '')('WrittenTracker', () => {
  it('reports what is written between rounds, and proves the rest', async () => {
    const child = await start(8);
    const own = [{ first: child.first, count: 2000 }];
    const tracker = await open();
    const all = (await tracker.round([child.pid], going)).get(child.pid);
    expect(countPages(intersectRanges(all?.changed ?? [], own))).toBe(2000);
    await child.tell('fill', 7, 3, 66);
    await child.tell('drop', 1000, 4);
    const next = (await tracker.round([child.pid], going)).get(child.pid);
    expect(intersectRanges(next?.changed ?? [], own)).toEqual([{ first: child.first + 7, count: 3 }]);
    expect(next?.gone).toEqual([{ first: child.first + 1000, count: 4 }]);
    await child.tell('fill', 1001, 1, 5);
    process.kill(child.pid, 'SIGSTOP');
    const last = (await tracker.final([child.pid])).get(child.pid);
    expect(last?.proof).toBe('unchanged');
    expect(intersectRanges(last?.changed ?? [], own)).toEqual([{ first: child.first + 1001, count: 1 }]);
    expect(countPages(intersectRanges(last?.rest ?? [], own))).toBe(2000 - 4);
    await tracker.close();
  });

  it('trusts no mark that was left behind where the kernel let go of a mapping', async () => {
    const child = await start(1);
    const first = Number(await child.tell('pair'));
    const pair = [{ first, count: 16 }];
    const changed = async (): Promise<number> => {
      const pages = (await tracker.round([child.pid], going)).get(child.pid);
      return countPages(intersectRanges(pages?.changed ?? [], pair));
    };
    const tracker = await open();
    expect(await changed()).toBe(16);
    expect(await changed()).toBe(0);
    expect(await child.tell('join')).toBe('done');
    await child.tell('poke', 3);
    expect(await changed()).toBe(16);
    await child.tell('poke', 5);
    expect(await changed()).toBe(1);
    await tracker.close();
  });

  it('starts afresh after an exec, and leaves out what has vanished', async () => {
    const child = await start(1);
    const tracker = await open();
    await tracker.round([child.pid], going);
    const first = Math.ceil(Number(await child.tell('exec')) / 4096);
    const after = (await tracker.round([child.pid], going)).get(child.pid);
    expect(countPages(intersectRanges(after?.changed ?? [], [{ first, count: 255 }]))).toBe(255);
    await child.end();
    expect(await tracker.round([child.pid], going)).toEqual(new Map());
    expect(await tracker.final([child.pid])).toEqual(new Map());
    await tracker.close();
  });

  it('calls everything changed after a round that did not end', async () => {
    const [one, other] = [await start(1), await start(1)];
    const pids = [one.pid, other.pid];
    const tracker = await open();
    await tracker.round(pids, going);
    await expect(tracker.round(pids, AbortSignal.abort())).rejects.toThrow();
    for (const pid of pids) process.kill(pid, 'SIGSTOP');
    for (const pages of (await tracker.final(pids)).values()) expect(pages.rest).toEqual([]);
    await tracker.close();
  });

  it('leaves nothing in the process, and no mark after it is closed', async () => {
    const child = await start(1);
    const tracker = await open();
    await tracker.round([child.pid], going);
    const descriptors = execFileSync('ls', ['-l', `/proc/${child.pid}/fd`], { encoding: 'utf8' });
    expect(descriptors).not.toContain('userfaultfd');
    expect(readFileSync(`/proc/${child.pid}/smaps`, 'latin1')).toMatch(/^VmFlags:.* uw/m);
    await tracker.close();
    expect(readFileSync(`/proc/${child.pid}/smaps`, 'latin1')).not.toMatch(/^VmFlags:.* uw/m);
    expect(await child.tell('fill', 1, 1, 1)).toBe('done');
  });
});
