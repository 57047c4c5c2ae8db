import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { UmsError } from '#src/telemetry/errors.ts';
import { FakeLink, type Fault } from './fake-link.fixture.ts';
import type { PageRange, SpaceName } from './model.ts';
import { type Bench, differences, openBench, pageOf, TestMemory } from './pages.fixture.ts';

const SPACES: readonly SpaceName[] = ['process:1', 'process:7', 'image:pages-1.img'];

interface Change {
  readonly space: number;
  readonly first: number;
  readonly count: number;
  /** 0 zeros, small numbers repeat, -1 unmaps. */
  readonly seed: number;
}

const change: fc.Arbitrary<Change> = fc.record({
  space: fc.nat(SPACES.length - 1),
  first: fc.integer({ min: 0, max: 900 }),
  count: fc.integer({ min: 1, max: 200 }),
  seed: fc.oneof(fc.constant(0), fc.constant(-1), fc.integer({ min: 1, max: 6 }), fc.integer({ min: 100, max: 1e6 })),
});

const fault: fc.Arbitrary<Fault> = fc.record({
  kind: fc.constantFrom('flip', 'drop', 'duplicate', 'reorder', 'close', 'stall'),
  direction: fc.constantFrom('there', 'back'),
  index: fc.nat(2),
  at: fc.oneof(fc.nat(2000), fc.nat(400_000)),
});

function apply(memories: readonly TestMemory[], changes: readonly Change[]): PageRange[][] {
  const touched: PageRange[][] = memories.map(() => []);
  for (const { space, first, count, seed } of changes) {
    const memory = memories[space];
    if (memory === undefined) continue;
    touched[space]?.push({ first, count });
    for (let page = first; page < first + count; page += 1) {
      if (seed < 0) memory.pages.delete(page);
      else memory.set(page, pageOf(seed < 100 ? seed : seed + page));
    }
  }
  return touched;
}

async function move(
  bench: Bench,
  memories: readonly TestMemory[],
  rounds: readonly (readonly Change[])[],
  how: string,
) {
  const { sender, receiver } = bench;
  for (const [at, memory] of memories.entries()) sender.addSpace(SPACES[at] ?? 'process:1', memory);
  const each = (work: (name: SpaceName, memory: TestMemory, at: number) => Promise<unknown>) =>
    Promise.all(memories.map((memory, at) => work(SPACES[at] ?? 'process:1', memory, at)));
  for (const changes of rounds.slice(0, -1)) {
    const touched = apply(memories, changes);
    await each((name, _memory, at) => sender.send(name, touched[at] ?? [], 'live'));
  }
  const last = apply(memories, rounds.at(-1) ?? []);
  await each(async (name, memory, at) => {
    receiver.demand(name, { first: 100 + at, count: 20 }, true);
    if (how === 'send') await sender.send(name, memory.ranges(), 'final');
    else if (how === 'confirm') await sender.send(name, await sender.confirm(name, memory.ranges()), 'final');
    else {
      await sender.send(name, last[at] ?? [], 'final');
      await sender.send(name, await sender.unchanged(name, memory.ranges()), 'final');
    }
  });
  await sender.seal(memories.map((memory, at) => ({ name: SPACES[at] ?? 'process:1', ranges: memory.ranges() })));
}

async function within(work: Promise<void>): Promise<void> {
  const timer = setTimeout(() => {
    throw new Error('it hangs');
  }, 10_000);
  try {
    await work;
  } finally {
    clearTimeout(timer);
  }
}

describe('a link with faults', () => {
  it('ends in the right pages, or in an error that says why', { timeout: 60_000 }, async () => {
    const outcomes = { right: 0, failed: 0, faults: 0 };
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.array(change, { maxLength: 6 }), { minLength: 1, maxLength: 3 }),
        fc.array(fault, { maxLength: 6 }),
        fc.constantFrom('send', 'confirm', 'unchanged'),
        fc.integer({ min: 500, max: 70_000 }),
        fc.constantFrom('auto' as const, 'none' as const, 'lz4' as const, 'zstd' as const),
        async (rounds, faults, how, chunk_bytes, compression) => {
          const link = new FakeLink({ faults, chunk_bytes });
          const memories = SPACES.map(() => new TestMemory());
          let bench: Bench | undefined;
          try {
            bench = await openBench({ wire: link.wire, compression, stall_ms: 120, reconnect_ms: 1500 });
            await within(move(bench, memories, rounds, how));
            for (const [at, memory] of memories.entries()) {
              expect(differences(bench.store, SPACES[at] ?? 'process:1', memory)).toEqual([]);
            }
            outcomes.right += 1;
          } catch (error) {
            if (!(error instanceof UmsError)) throw error;
            expect(error.code).toBe('UMS_E_TRANSFER');
            outcomes.failed += 1;
          } finally {
            outcomes.faults += link.happened;
            await bench?.close();
          }
        },
      ),
      { numRuns: 30, endOnFailure: true },
    );
    expect(outcomes.faults).toBeGreaterThan(5);
    expect(outcomes.right).toBeGreaterThan(20);
  });
});
