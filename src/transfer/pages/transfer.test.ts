import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { connect, createServer, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { z } from 'zod';
import { PageCache, PageCacheWriter } from './cache.ts';
import { FakeLink } from './fake-link.fixture.ts';
import { countPages, PAGE_BYTES, type PageRange, type SpaceName } from './model.ts';
import { PageReceiver } from './page-receiver.ts';
import { PageSender } from './sender.ts';
import { PageStore } from './store.ts';
import { type Bench, type BenchOptions, differences, MEMORY, openBench, pageOf, TestMemory } from './pages.fixture.ts';

const SPACE: SpaceName = 'process:1';
const benches: Bench[] = [];

async function open(options: BenchOptions = {}): Promise<Bench> {
  const bench = await openBench(options);
  benches.push(bench);
  return bench;
}

afterEach(async () => {
  for (const bench of benches.splice(0)) await bench.close();
});

function filled(count: number, seed: (page: number) => number, first = 1000): TestMemory {
  const memory = new TestMemory();
  for (let page = 0; page < count; page += 1) memory.set(first + page, pageOf(seed(page)));
  return memory;
}

describe('the page path', () => {
  it('moves pages, zeros and duplicates as what they are', async () => {
    const bench = await open();
    const memory = filled(3000, (page) => (page % 3 === 0 ? 0 : page % 7 === 0 ? 42 : page + 100));
    bench.sender.addSpace(SPACE, memory);
    const report = await bench.sender.send(SPACE, memory.ranges(), 'final');
    expect(report.pages).toBe(3000);
    expect(report.zero_bytes).toBe(1000 * PAGE_BYTES);
    await bench.sender.seal([{ name: SPACE, ranges: memory.ranges() }]);
    await bench.receiver.sealed();
    expect(differences(bench.store, SPACE, memory)).toEqual([]);
    expect(bench.receiver.status().complete).toBe(true);
  });

  it('leaves out the rest of rounds that are cut short, and knows what the receiver lacks', async () => {
    const bench = await open({ rate_bytes_s: 4_000_000 });
    const memory = filled(3000, (page) => page + 1);
    const halves = [memory.ranges()[0]?.first ?? 0, 1500 + (memory.ranges()[0]?.first ?? 0)];
    bench.sender.addSpace(SPACE, memory);
    const rounds = halves.map((first) => bench.sender.send(SPACE, [{ first, count: 1500 }], 'live'));
    await vi.waitFor(() => expect(bench.sender.stats().pages).toBeGreaterThan(100));
    bench.sender.cutRounds();
    const [some, none] = await Promise.all(rounds);
    expect(some?.pages).toBeLessThan(1500);
    expect(none?.pages).toBe(0);
    // A round that is begun later is whole.
    expect((await bench.sender.send(SPACE, [{ first: 2900, count: 50 }], 'live')).pages).toBe(50);
    const lacking = await bench.sender.unchanged(SPACE, memory.ranges());
    expect(countPages(lacking)).toBe(3000 - (some?.pages ?? 0) - 50);
    await bench.sender.send(SPACE, lacking, 'final');
    await bench.sender.seal([{ name: SPACE, ranges: memory.ranges() }]);
    expect(differences(bench.store, SPACE, memory)).toEqual([]);
  });

  it('does not take for unchanged what a round that was cut short should have brought', async () => {
    const bench = await open({ rate_bytes_s: 8_000_000 });
    const memory = filled(3000, (page) => page + 1);
    bench.sender.addSpace(SPACE, memory);
    await bench.sender.send(SPACE, memory.ranges(), 'live');
    for (let page = 1000; page < 4000; page += 1) memory.set(page, pageOf(page + 50_000));
    const before = bench.sender.stats().pages;
    const rounds = [1000, 2500].map((first) => bench.sender.send(SPACE, [{ first, count: 1500 }], 'live'));
    await vi.waitFor(() => expect(bench.sender.stats().pages).toBeGreaterThan(before + 100));
    bench.sender.cutRounds();
    const sent = (await Promise.all(rounds)).reduce((sum, { pages }) => sum + pages, 0);
    expect(sent).toBeLessThan(1500);
    const lacking = await bench.sender.unchanged(SPACE, memory.ranges());
    expect(countPages(lacking)).toBe(3000 - sent);
    await bench.sender.send(SPACE, lacking, 'final');
    await bench.sender.seal([{ name: SPACE, ranges: memory.ranges() }]);
    expect(differences(bench.store, SPACE, memory)).toEqual([]);
  });

  it('sends rounds, then only what changed, by whatever says so', async () => {
    const bench = await open();
    const memory = filled(1000, (page) => page);
    bench.sender.addSpace(SPACE, memory);
    await bench.sender.send(SPACE, memory.ranges(), 'live');
    expect(bench.store.state(SPACE, 1000)).toBe('provisional');
    memory.set(1005, pageOf(77_777));
    memory.set(1300, pageOf(0));
    memory.set(1000, pageOf(5));
    memory.set(2500, pageOf(9));
    const lacking = await bench.sender.unchanged(SPACE, [{ first: 1500, count: 1001 }]);
    expect(lacking).toEqual([{ first: 2000, count: 501 }]);
    const differing = await bench.sender.confirm(SPACE, [
      { first: 1000, count: 500 },
      { first: 2500, count: 1 },
    ]);
    expect(differing).toEqual([
      { first: 1000, count: 1 },
      { first: 1005, count: 1 },
      { first: 1300, count: 1 },
      { first: 2500, count: 1 },
    ]);
    await bench.sender.send(SPACE, differing, 'final');
    await bench.sender.seal([{ name: SPACE, ranges: memory.ranges() }]);
    expect(differences(bench.store, SPACE, memory)).toEqual([]);
  });

  it('says what is no longer there, and never seals without it', async () => {
    const bench = await open();
    const memory = filled(10, (page) => page + 1);
    bench.sender.addSpace(SPACE, memory);
    const report = await bench.sender.send(SPACE, [{ first: 995, count: 20 }], 'final');
    expect(report).toMatchObject({ pages: 10, absent_pages: 10 });
    await expect(bench.sender.seal([{ name: SPACE, ranges: [{ first: 995, count: 20 }] }])).rejects.toMatchObject({
      code: 'UMS_E_TRANSFER',
      fault: 'source',
    });
    expect(bench.receiver.status().complete).toBe(false);
  });

  it('answers demands before all else, also those for pages that are not there', { timeout: 30_000 }, async () => {
    const bench = await open({ rate_bytes_s: 12e6, compression: 'none' });
    const memory = filled(4000, (page) => page + 1);
    bench.sender.addSpace(SPACE, memory);
    const order: number[] = [];
    const absent: PageRange[] = [];
    bench.receiver.onFinal((_name, { first, count }) => order.push(first, count));
    bench.receiver.onAbsent((_name, range) => absent.push(range));
    bench.receiver.demand(SPACE, { first: 4990, count: 2 }, true);
    bench.receiver.demand(SPACE, { first: 9_000, count: 1 }, true);
    const sending = bench.sender.send(SPACE, memory.ranges(), 'final');
    await vi.waitFor(() => expect(bench.store.state(SPACE, 4991)).toBe('final'), { timeout: 1000 });
    await vi.waitFor(() => expect(absent).toEqual([{ first: 9_000, count: 1 }]));
    expect(bench.receiver.status().final_pages).toBeLessThan(3000);
    expect(order.slice(0, 8)).toContain(4990);
    await sending;
    expect(differences(bench.store, SPACE, memory)).toEqual([]);
  });

  it('answers demands from the freeze on, also while nothing else is sent', async () => {
    const bench = await open({ compression: 'none' });
    bench.sender.addSpace(
      SPACE,
      filled(10, (page) => page + 1),
    );
    bench.receiver.demand(SPACE, { first: 1004, count: 1 }, true);
    await bench.sender.frozen();
    await vi.waitFor(() => expect(bench.store.state(SPACE, 1004)).toBe('final'), { timeout: 1000 });
  });

  it('keeps to its rate', async () => {
    const bench = await open({ rate_bytes_s: 8e6, compression: 'none' });
    const memory = filled(1000, (page) => page + 1);
    bench.sender.addSpace(SPACE, memory);
    const { elapsed_ms } = await bench.sender.send(SPACE, memory.ranges(), 'final');
    expect(elapsed_ms).toBeGreaterThan(350);
  });

  it('names what the receiver has from an earlier migration instead of sending it', async () => {
    const memory = filled(2000, (page) => page + 1);
    const cacheDir = join(await mkdtemp(join(tmpdir(), 'ums-cache-')), 'cache');
    const cache = await PageCacheWriter.create(cacheDir, 64 * 1024 * 1024);
    const there = await open({ cache });
    there.sender.addSpace(SPACE, memory);
    await there.sender.send(SPACE, memory.ranges(), 'final');
    expect(await cache.finish()).toBe(2000);
    memory.set(1500, pageOf(999_999));
    const known = await PageCache.open(cacheDir);
    if (known === undefined) throw new Error('there is no cache');
    const back = await open({ store: { cache: known } });
    back.sender.addSpace(SPACE, memory);
    const report = await back.sender.send(SPACE, memory.ranges(), 'final');
    expect(report.reference_bytes).toBe(1999 * PAGE_BYTES);
    expect(report.wire_bytes).toBeLessThan(100 * PAGE_BYTES);
    expect(differences(back.store, SPACE, memory)).toEqual([]);
    known.close();
    await rm(dirname(cacheDir), { recursive: true, force: true });
  });

  it('survives a cache and memory in which the same hash stands for other content', async () => {
    const memory = filled(600, (page) => page + 1);
    const cacheDir = join(await mkdtemp(join(tmpdir(), 'ums-cache-')), 'cache');
    const cache = await PageCacheWriter.create(cacheDir, 64 * 1024 * 1024);
    const there = await open({ cache });
    there.sender.addSpace(SPACE, memory);
    await there.sender.send(SPACE, memory.ranges(), 'final');
    await cache.finish();
    const pages = await readFile(join(cacheDir, 'pages'));
    pages.writeUInt8(pages.readUInt8(5000) ^ 1, 5000);
    await writeFile(join(cacheDir, 'pages'), pages);
    const known = await PageCache.open(cacheDir);
    const back = await open(known === undefined ? {} : { store: { cache: known } });
    back.sender.addSpace(SPACE, memory);
    await back.sender.send(SPACE, memory.ranges(), 'final');
    expect(back.sender.stats().frames_refused).toBeGreaterThan(0);
    expect(differences(back.store, SPACE, memory)).toEqual([]);
    known?.close();
    await rm(dirname(cacheDir), { recursive: true, force: true });
  });

  it('goes on after the link broke', { timeout: 30_000 }, async () => {
    const link = new FakeLink({ rate_bytes_s: 20e6 });
    const bench = await open({ wire: link.wire, compression: 'none' });
    const memory = filled(3000, (page) => page + 1);
    bench.sender.addSpace(SPACE, memory);
    const sending = bench.sender.send(SPACE, memory.ranges(), 'final');
    for (const wait_ms of [60, 60, 60]) {
      await delay(wait_ms);
      link.breakAll();
    }
    const report = await sending;
    await bench.sender.seal([{ name: SPACE, ranges: memory.ranges() }]);
    expect(bench.sender.stats().reconnects).toBeGreaterThan(2);
    expect(report.wire_bytes).toBeLessThan(2 * 3000 * PAGE_BYTES);
    expect(differences(bench.store, SPACE, memory)).toEqual([]);
  });

  it('goes on after either agent was started again', { timeout: 30_000 }, async () => {
    const dir = await mkdtemp(join(MEMORY, 'ums-pages-'));
    const link = new FakeLink({ rate_bytes_s: 10e6 });
    let store = await PageStore.open(dir);
    let receiver = PageReceiver.open(store);
    const session = 'c'.repeat(32);
    const start = (): Promise<PageSender> =>
      PageSender.start({
        connections: 2,
        compression: 'none',
        reconnect_ms: 5000,
        session,
        open: async (index) => {
          const { near, far } = link.wire(index);
          void receiver.attach(index, far);
          return near;
        },
      });
    const memory = filled(2000, (page) => page + 1);
    const contents = [{ name: SPACE, ranges: memory.ranges() }];
    const first = await start();
    first.addSpace(SPACE, memory);
    const sending = first.send(SPACE, memory.ranges(), 'final');
    sending.catch(() => undefined);
    await vi.waitFor(() => expect(receiver.status().final_pages).toBeGreaterThan(200), { timeout: 10_000 });
    await receiver.close();
    store.close();
    store = await PageStore.open(dir);
    receiver = PageReceiver.open(store);
    const before = store.finalPages;
    expect(before).toBeGreaterThan(200);
    await vi.waitFor(() => expect(receiver.status().final_pages).toBeGreaterThan(before), { timeout: 10_000 });
    await first.close();
    const second = await start();
    second.addSpace(SPACE, memory);
    await second.seal(contents);
    await receiver.sealed();
    expect(second.stats().pages).toBeLessThan(2000 - 200);
    expect(differences(store, SPACE, memory)).toEqual([]);
    await second.close();
    await receiver.close();
    store.close();
    await rm(dir, { recursive: true, force: true });
  });

  it('ends with a reason when the link does not come back, and in every call after that', async () => {
    let broken = false;
    const link = new FakeLink({ rate_bytes_s: 5e6 });
    const bench = await open({
      reconnect_ms: 200,
      compression: 'none',
      wire: (index) => {
        if (broken) throw new Error('no route');
        return link.wire(index);
      },
    });
    const memory = filled(2000, (page) => page + 1);
    bench.sender.addSpace(SPACE, memory);
    const sending = bench.sender.send(SPACE, memory.ranges(), 'final');
    broken = true;
    link.breakAll();
    await expect(sending).rejects.toMatchObject({ code: 'UMS_E_TRANSFER', message: /did not come back.*no route/ });
    await expect(bench.sender.seal([])).rejects.toMatchObject({ code: 'UMS_E_TRANSFER' });
  });

  it('tells the source when the destination has no room', async () => {
    const bench = await open({ store: { limit_bytes: 100 * PAGE_BYTES } });
    const memory = filled(500, (page) => page + 1);
    bench.sender.addSpace(SPACE, memory);
    await expect(bench.sender.send(SPACE, memory.ranges(), 'live')).rejects.toMatchObject({ code: 'UMS_E_NO_ROOM' });
  });

  it('does not mix migrations', async () => {
    const bench = await open({ session: 'a'.repeat(32) });
    const wire = new FakeLink().wire;
    const other = PageSender.start({
      connections: 1,
      compression: 'none',
      reconnect_ms: 100,
      session: 'b'.repeat(32),
      open: async (index) => {
        const { near, far } = wire(index);
        void bench.receiver.attach(index, far);
        return near;
      },
    });
    await expect(other).rejects.toMatchObject({ code: 'UMS_E_TRANSFER', fault: 'destination' });
  });

  it('moves much memory over TCP with little of its own', { timeout: 60_000 }, async () => {
    const server = createServer({ noDelay: true });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const address = server.address();
    if (address === null || typeof address === 'string') throw new Error('no port');
    let opened: Promise<unknown> = Promise.resolve();
    const bench = await open({
      compression: 'none',
      wire: () => {
        // One after the other, so that both ends agree on which is which.
        const ends = opened.then(async () => {
          const accepted = once(server, 'connection');
          const near = connect({ port: address.port, host: '127.0.0.1', noDelay: true });
          const [far] = z.tuple([z.instanceof(Socket)]).parse(await accepted);
          return { near, far };
        });
        opened = ends;
        return ends;
      },
    });
    const pool = Buffer.concat(Array.from({ length: 256 }, (_, page) => pageOf(page + 1)));
    const read = (first: number, count: number, target: Buffer): number => {
      for (let at = 0; at < count; at += 1) {
        pool.copy(
          target,
          at * PAGE_BYTES,
          ((first + at) % 256) * PAGE_BYTES,
          ((first + at) % 256) * PAGE_BYTES + PAGE_BYTES,
        );
        target.writeDoubleLE(first + at, at * PAGE_BYTES + 64);
      }
      return count;
    };
    const pages = 64 * 1024;
    bench.sender.addSpace(SPACE, { read });
    const before = process.memoryUsage().arrayBuffers;
    let most = 0;
    const timer = setInterval(() => {
      most = Math.max(most, process.memoryUsage().arrayBuffers - before);
    }, 20);
    await bench.sender.send(SPACE, [{ first: 0, count: pages }], 'final');
    clearInterval(timer);
    await bench.sender.seal([{ name: SPACE, ranges: [{ first: 0, count: pages }] }]);
    expect(most).toBeLessThan(128 * 1024 * 1024);
    const expected = Buffer.alloc(PAGE_BYTES);
    const got = Buffer.alloc(PAGE_BYTES);
    for (let page = 0; page < pages; page += 997) {
      read(page, 1, expected);
      bench.store.read(SPACE, page, got);
      expect(got.equals(expected)).toBe(true);
    }
    server.close();
  });
});
