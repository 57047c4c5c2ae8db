import { mkdtemp, readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import * as fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { PAGE_BYTES, type PageState, type SpaceName } from './model.ts';
import { MEMORY, pageOf } from './pages.fixture.ts';
import { PageStore, PageStoreReader, State } from './store.ts';

const SPACE: SpaceName = 'process:1';
/** Where a 47-bit address space has its stacks. */
const HIGH = 2 ** 35 - 100;
let dir: string;

beforeEach(async () => {
  dir = await mkdtemp(join(MEMORY, 'ums-store-'));
});
afterEach(async () => {
  await rm(dir, { recursive: true, force: true });
});

type Act = {
  readonly what: 'write' | 'zero' | 'forget' | 'mark';
  first: number;
  count: number;
  seed: number;
  final: boolean;
};

describe('the page store', () => {
  it('gives back its memory when all is placed, and what comes late finds nothing to do', async () => {
    const store = await PageStore.open(dir);
    const content = Buffer.concat([pageOf(1), pageOf(2)]);
    store.write(SPACE, 7, content, true);
    const data = join(dir, `${SPACE}.data`);
    expect((await stat(data)).blocks).toBeGreaterThan(0);
    await store.empty();
    store.write(SPACE, 7, content, true);
    expect((await stat(data)).blocks).toBe(0);
    expect(store.state(SPACE, 8)).toBe('final');
    store.close();
  });

  it('is a map of pages whose final ones never change, also after it was opened again', async () => {
    const act: fc.Arbitrary<Act> = fc.record({
      what: fc.constantFrom('write', 'zero', 'forget', 'mark'),
      first: fc.integer({ min: 0, max: 30 }),
      count: fc.integer({ min: 1, max: 12 }),
      seed: fc.integer({ min: 1, max: 50 }),
      final: fc.boolean(),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(act, { maxLength: 25 }), fc.constantFrom(0, 4090, HIGH), async (acts, base) => {
        const own = await mkdtemp(join(dir, 'run-'));
        const store = await PageStore.open(own);
        const model = new Map<number, { content: Buffer; state: PageState }>();
        for (const one of acts) perform(store, model, one, base);
        store.close();
        const again = await PageStore.open(own);
        const reader = new PageStoreReader(own);
        const got = Buffer.alloc(PAGE_BYTES);
        const states = new Uint8Array(1);
        for (let page = base; page < base + 45; page += 1) {
          const expected = model.get(page);
          expect(again.state(SPACE, page)).toBe(expected?.state ?? 'absent');
          if (expected === undefined) continue;
          again.read(SPACE, page, got);
          expect(got.equals(expected.content)).toBe(true);
          reader.read(SPACE, page, got);
          expect(got.equals(expected.content)).toBe(true);
          reader.states(SPACE, page, states);
          expect((states[0] ?? 0) & State.mask).toBe(expected.state === 'final' ? State.final : State.provisional);
        }
        expect(again.pages).toBe(model.size);
        expect(again.finalPages).toBe([...model.values()].filter(({ state }) => state === 'final').length);
        again.close();
        reader.close();
      }),
      { numRuns: 40 },
    );
  });

  it('takes no more than it may, and only its owner can read it', async () => {
    const store = await PageStore.open(join(dir, 'small'), { limit_bytes: 4 * PAGE_BYTES });
    store.write(SPACE, 0, Buffer.alloc(4 * PAGE_BYTES, 1), false);
    store.write(SPACE, 0, Buffer.alloc(4 * PAGE_BYTES, 2), false);
    expect(() => store.write(SPACE, 9, Buffer.alloc(PAGE_BYTES, 1), false)).toThrow(/no room/);
    expect((await stat(join(dir, 'small'))).mode & 0o777).toBe(0o700);
    for (const file of await readdir(join(dir, 'small'))) {
      expect((await stat(join(dir, 'small', file))).mode & 0o777).toBe(0o600);
    }
    store.close();
  });
});

function perform(
  store: PageStore,
  model: Map<number, { content: Buffer; state: PageState }>,
  { what, first, count, seed, final }: Act,
  base: number,
): void {
  const from = base + first;
  const pages = Array.from({ length: count }, (_, at) => from + at);
  const state: PageState = final ? 'final' : 'provisional';
  if (what === 'write') store.write(SPACE, from, Buffer.concat(pages.map((page) => pageOf(seed + page))), final);
  else if (what === 'zero') store.zero(SPACE, from, count, final);
  else if (what === 'forget') store.forget(SPACE, [{ first: from, count }]);
  else store.markFinal(SPACE, [{ first: from, count }]);
  for (const page of pages) {
    const known = model.get(page);
    if (what === 'forget') model.delete(page);
    else if (what === 'mark') {
      if (known !== undefined) known.state = 'final';
    } else if (known?.state !== 'final') {
      model.set(page, { content: what === 'zero' ? pageOf(0) : pageOf(seed + page), state });
    }
  }
}
