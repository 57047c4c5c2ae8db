import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { countPages, normaliseRanges, PAGE_BYTES, type PageRange, subtractRanges } from '#src/transfer/pages/model.ts';
import { toUmsError } from '#src/telemetry/errors.ts';
import xxhash from 'xxhash-wasm';
import { startChild } from './child.test-support.ts';
import { mappingsNow } from './mappings.ts';
import type { DirtyTracker, TrackerKind } from './model.ts';
import { openTracker } from './open-tracker.ts';
import { presentPages } from './pagemap.ts';
import { ProcessMemory } from './process-memory.ts';
import { WrittenTracker } from './written-tracker.ts';

const CHUNK_PAGES = 256;
const ZEROS = Buffer.alloc(PAGE_BYTES);
const hashes = await xxhash();

const nothing = async (): Promise<void> => {};

/** Why a kind of tracker cannot be tested by whoever runs the tests; empty: it can. */
export async function reasonAgainst(kind: TrackerKind): Promise<string> {
  const child = await startChild(1);
  let tracker: DirtyTracker | undefined;
  try {
    tracker = await openTracker({ prefer: kind, pause: nothing, unpause: nothing });
    await tracker.round([child.pid], new AbortController().signal);
    return tracker instanceof WrittenTracker ? (tracker.details()[0]?.hashed ?? '') : '';
  } catch (error) {
    return toUmsError(error).message;
  } finally {
    await tracker?.close();
    await child.end();
  }
}

/** What a receiver would hold: every page as it was read when the tracker reported it. */
class Shadow {
  readonly pages = new Map<number, bigint>();
  readonly #memory: ProcessMemory;

  constructor(memory: ProcessMemory) {
    this.#memory = memory;
  }

  take(changed: readonly PageRange[], gone: readonly PageRange[]): void {
    eachPage(gone, (page) => this.pages.delete(page));
    this.each(changed, (page, content) => this.pages.set(page, hashes.h64Raw(content)));
  }

  each(ranges: readonly PageRange[], visit: (page: number, content: Buffer) => void): void {
    const chunk = Buffer.alloc(CHUNK_PAGES * PAGE_BYTES);
    for (const range of ranges) {
      for (let done = 0; done < range.count; ) {
        const wanted = Math.min(CHUNK_PAGES, range.count - done);
        const got = this.#memory.read(range.first + done, wanted, chunk);
        for (let page = 0; page < got; page += 1) {
          visit(range.first + done + page, chunk.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES));
        }
        done += Math.max(1, got);
      }
    }
  }

  close(): void {
    this.#memory.close();
  }
}

function eachPage(ranges: readonly PageRange[], visit: (page: number) => void): void {
  for (const range of ranges) for (let page = 0; page < range.count; page += 1) visit(range.first + page);
}

export interface Outcome {
  /** Pages that nobody would have sent: there must be none. */
  missed: string[];
  final_changed: number;
  final_rest: number;
  final_ms: number;
  round_changed: number[];
  round_ms: number[];
}

/** Follows these processes for some rounds, freezes them, and compares every page with what was read of it. */
export async function follow(
  tracker: DirtyTracker,
  pids: () => number[] | Promise<number[]>,
  rounds: number,
  pause_ms: () => number,
  freeze: () => Promise<void> = async () => {
    // The first makes and ends the others.
    await stop((await pids()).slice(0, 1));
    await stop(await pids());
  },
): Promise<Outcome> {
  const shadows = new Map<number, Shadow>();
  const signal = new AbortController().signal;
  const outcome: Outcome = {
    missed: [],
    final_changed: 0,
    final_rest: 0,
    final_ms: 0,
    round_changed: [],
    round_ms: [],
  };
  for (let round = 0; round < rounds; round += 1) {
    const started = performance.now();
    const found = await tracker.round(await pids(), signal);
    outcome.round_ms.push(performance.now() - started);
    for (const pid of shadows.keys()) if (!found.has(pid)) shadows.delete(pid);
    for (const [pid, pages] of found) {
      const shadow = shadows.get(pid) ?? new Shadow(await ProcessMemory.open(pid));
      shadows.set(pid, shadow);
      shadow.take(pages.changed, pages.gone);
      outcome.round_changed.push(countPages(pages.changed));
    }
    await delay(pause_ms());
  }
  await freeze();
  const all = await pids();
  const started = performance.now();
  const last = await tracker.final(all);
  outcome.final_ms = performance.now() - started;
  for (const pid of all) {
    const pages = last.get(pid);
    if (pages === undefined && mappingsNow(pid).length > 0) outcome.missed.push(`process ${pid} is missing`);
    const shadow = shadows.get(pid) ?? new Shadow(await ProcessMemory.open(pid));
    await compare(pid, shadow, pages?.changed ?? [], pages?.rest ?? [], outcome);
    shadow.close();
  }
  return outcome;
}

async function compare(
  pid: number,
  shadow: Shadow,
  changed: readonly PageRange[],
  rest: readonly PageRange[],
  outcome: Outcome,
): Promise<void> {
  outcome.final_changed += countPages(changed);
  outcome.final_rest += countPages(rest);
  const tell = (page: number, what: string) =>
    outcome.missed.push(`${pid} ${(page * PAGE_BYTES).toString(16)} ${what} ${mapOf(pid, page)}`);
  shadow.each(rest, (page, content) => {
    const known = shadow.pages.get(page);
    if (known === undefined) tell(page, 'was never reported');
    else if (known !== hashes.h64Raw(content)) tell(page, 'differs');
  });
  const lazy = normaliseRanges(mappingsNow(pid).filter((mapping) => mapping.lazy));
  const elsewhere = subtractRanges(await presentPages(pid, lazy), normaliseRanges([...changed, ...rest]));
  shadow.each(elsewhere, (page, content) => {
    if (!content.equals(ZEROS)) tell(page, 'holds something and is in neither list');
  });
}

function mapOf(pid: number, page: number): string {
  const mapping = mappingsNow(pid).find(({ first, count }) => page >= first && page < first + count);
  return JSON.stringify(mapping);
}

/** Stops processes; resolves when they stand still. */
export async function stop(pids: readonly number[]): Promise<void> {
  for (const pid of pids) process.kill(pid, 'SIGSTOP');
  for (const pid of pids) await stands(pid);
}

async function stands(pid: number): Promise<void> {
  for (let tries = 0; tries < 5000; tries += 1) {
    const state = /\) (\S)/.exec(readFileSync(`/proc/${pid}/stat`, 'latin1'))?.[1];
    if (state === 'T' || state === 'Z') return;
    await delay(1);
  }
  throw new Error(`process ${pid} did not stop`);
}
