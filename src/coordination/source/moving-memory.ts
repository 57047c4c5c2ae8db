import { readFile } from 'node:fs/promises';
import { setImmediate } from 'node:timers/promises';
import { firstTouched, lazyContents } from '#src/checkpoint/lazy/index.ts';
import {
  type DirtyTracker,
  type FinalPages,
  type Mapping,
  mappings,
  openTracker,
  ProcessMemory,
  type RoundPages,
} from '#src/checkpoint/memory/index.ts';
import type { RoundMeasurement } from '#src/decision/index.ts';
import { toUmsError, type UmsError } from '#src/telemetry/errors.ts';
import {
  countPages,
  intersectRanges,
  normaliseRanges,
  PAGE_BYTES,
  type PageRange,
  type SenderStats,
  type SpaceContents,
  type SpaceName,
  subtractRanges,
} from '#src/transfer/pages/model.ts';
import type { PageCacheWriter } from '#src/transfer/pages/cache.ts';
import type { PageSender } from '#src/transfer/pages/sender.ts';
import type { SagaContext } from '../context.ts';
import type { Row } from '../journal.ts';
import { trimPageCaches, writePageCache } from '../page-caches.ts';
import type { MemoryReport } from '../schema.ts';
import { watchRound } from './round-watch.ts';
import { startSender } from './start-sender.ts';
import { unlessAborted } from './unless-aborted.ts';

const NEAR_LOOK_MS = 25;
/** A destination takes at least so long to put what has arrived where it belongs, once the service runs there. */
const FILL_MS_PER_BYTE = 550 / 2 ** 30;
/** So much of a round is left out at most. */
const CUT_MS = 2000;
/** Before the last page arrives, a destination has so much time for its restore; with what it fills meanwhile, more. */
const RESTORE_MS = 1500;
/** Over a longer link it waits for the last page: what a restore touches before it is there costs it a round trip each. */
const RESTORE_RTT_MS = 15;

/** Pages of small mappings that are sent ahead, and for how long they may keep the link busy: the images wait behind them. */
const FIRST_PAGES = 96;
const FIRST_MS = 10;
/** Turns of the event loop after which a request is on the wire. */
const REQUEST_TURNS = 3;

interface RoundOptions {
  nearEnd?: (measured: RoundMeasurement) => Promise<boolean>;
  mayCut?: boolean;
}

/** What a round has to carry. */
interface Look {
  /** performance.now() when it began. */
  readonly looked_ms: number;
  readonly scan_ms: number;
  readonly found: Map<number, RoundPages>;
}

/** A process whose memory moves. */
interface Moving {
  readonly name: SpaceName;
  readonly memory: ProcessMemory;
}

/**
 * The source's side of a service's memory on its way: reads the processes, finds what changed, and sends it. CRIU has
 * no part in this; it only says, by its dump, which pages there must be in the end.
 */
export class MovingMemory {
  readonly #tracker: DirtyTracker;
  readonly #context: SagaContext;
  readonly #row: Row;
  readonly #sender: PageSender;
  readonly #cache: PageCacheWriter | undefined;
  readonly #moving = new Map<number, Moving>();
  readonly #closed = new AbortController();
  /** Final pages that have been handed to the sender, by space. */
  readonly #queued = new Map<SpaceName, PageRange[]>();
  readonly #final: Promise<unknown>[] = [];
  #contents: Promise<SpaceContents[]> | undefined;
  #sealed: Promise<void> | undefined;
  #finding: Promise<void> | undefined;
  readonly #released = Promise.withResolvers<void>();
  #rounds = 0;
  /** The look that is under way, or the last one. */
  #looking: Promise<Look> | undefined;
  /** It was begun before its round. */
  #isAhead = false;
  #looked_ms: number | undefined;
  /** When the service stood still, and what had been sent by then. */
  #frozenAt: { ms: number; sent_bytes: number } | undefined;
  #final_bytes = 0;
  #failure: UmsError | undefined;

  private constructor(
    context: SagaContext,
    row: Row,
    sender: PageSender,
    tracker: DirtyTracker,
    cache: PageCacheWriter | undefined,
  ) {
    this.#cache = cache;
    this.#context = context;
    this.#row = row;
    this.#sender = sender;
    this.#tracker = tracker;
  }

  /**
   * Opens what finds the pages that are written, which takes a while but touches nothing of the service, and closes it
   * again if `work` fails before it has become a part of what moves. Without rounds it attaches to nothing at all, and only
   * lists what is there in the end.
   */
  static async withTracker<T>(
    context: SagaContext,
    { engine, handle }: Row,
    memory: { readonly moving: MovingMemory | undefined },
    work: (opening: Promise<DirtyTracker>) => Promise<T>,
  ): Promise<T> {
    const driver = context.driver(engine);
    // The service is held still for the instant in which soft-dirty bits are read and cleared.
    const opening = openTracker({ pause: () => driver.freeze(handle), unpause: () => driver.thaw(handle) });
    try {
      return await work(opening);
    } catch (error) {
      if (memory.moving === undefined) {
        await opening.then(
          (tracker) => tracker.close(),
          () => undefined,
        );
      }
      throw error;
    }
  }

  /** With `ahead`, the first look at the memory begins while everything else is still being opened. */
  static async open(
    context: SagaContext,
    row: Row,
    signal: AbortSignal,
    { ahead = false, opening }: { ahead?: boolean; opening: Promise<DirtyTracker> },
  ): Promise<MovingMemory> {
    const closing = new AbortController();
    const abort = () => closing.abort(signal.reason);
    signal.addEventListener('abort', abort, { once: true });
    try {
      const driver = context.driver(row.engine);
      const cache = await writePageCache(context, row.service_uid);
      const starting = startSender(context, row, cache, closing.signal);
      const looking = ahead
        ? opening.then(async (one) => lookAt(one, await driver.processes(row.handle), closing.signal))
        : undefined;
      // Whoever begins the first round hears of it.
      looking?.catch(() => undefined);
      const [sender, tracker] = await Promise.all([starting, opening]).catch(async (error: unknown) => {
        closing.abort(error);
        await Promise.allSettled([looking]);
        await Promise.allSettled([starting.then((one) => one.close())]);
        await cache?.discard();
        throw error;
      });
      const moving = new MovingMemory(context, row, sender, tracker, cache);
      moving.#looking = looking;
      moving.#isAhead = ahead;
      moving.#closed.signal.addEventListener('abort', () => closing.abort(moving.#closed.signal.reason), {
        once: true,
      });
      return moving;
    } finally {
      signal.removeEventListener('abort', abort);
    }
  }

  get trackerKind(): DirtyTracker['kind'] {
    return this.#tracker.kind;
  }

  /** Why written pages are not found in one of the better ways. */
  get fallback(): string | undefined {
    return this.#tracker.fallback;
  }

  stats(): SenderStats {
    return this.#sender.stats();
  }

  /** How many processes the service had when it was last looked at. */
  get processes(): number {
    return this.#moving.size;
  }

  /** Why the rest of the memory cannot be sent, once that is so. */
  failure(): UmsError | undefined {
    return this.#failure;
  }

  /**
   * Copies what changed since the last round, all of it in the first, which is 0. `nearEnd` is called once when little
   * time of it is left, with what was measured by then; never for a round that is over before anybody could see that. It
   * answers whether the freeze follows, once that may come at any time. With `mayCut` the round then does not wait for the
   * last of the pages: they arrive while the destination is still busy with the others.
   */
  async round(
    number: number,
    cpu_share: number,
    signal: AbortSignal,
    { nearEnd, mayCut = false }: RoundOptions = {},
  ): Promise<{ measured: RoundMeasurement; isCut: boolean }> {
    const before = this.#sender.stats();
    const { looked_ms, scan_ms, found } = await unlessAborted(this.#look(signal), signal);
    const interval_ms = this.#looked_ms === undefined ? 0 : looked_ms - this.#looked_ms;
    this.#looked_ms = looked_ms;
    let present_pages = 0;
    let changed_pages = 0;
    const sent: Promise<unknown>[] = [];
    const send = (name: SpaceName, ranges: readonly PageRange[]) => {
      const sending = this.#sender.send(name, ranges, 'live');
      // Should another process fail first, nobody awaits this one: its failure must not count as unheard.
      sending.catch(() => undefined);
      sent.push(sending);
    };
    const bulk: { name: SpaceName; ranges: PageRange[] }[] = [];
    for (const [pid, pages] of found) {
      present_pages += pages.present_pages;
      changed_pages += countPages(pages.changed);
      const moving = await this.#open(pid).catch(unlessVanished);
      if (moving === undefined) continue;
      const { name } = moving;
      if (pages.gone.length > 0) await this.#sender.forget(name, pages.gone);
      // What is left out at the end should not be what every part of a program uses.
      const ranges = intersectRanges(mayCut ? await largestOf(pid) : [], pages.changed);
      if (ranges.length > 0) bulk.push({ name, ranges });
      send(name, subtractRanges(pages.changed, ranges));
    }
    for (const { name, ranges } of bulk) send(name, ranges);
    const measure = (): RoundMeasurement => {
      const { link_bytes_s, rtt_ms, ...after } = this.#sender.stats();
      const sent = {
        zero_bytes: after.zero_bytes - before.zero_bytes,
        reference_bytes: after.reference_bytes - before.reference_bytes,
        data_bytes: after.data_bytes - before.data_bytes,
        wire_bytes: after.wire_bytes - before.wire_bytes,
      };
      const elapsed_ms = performance.now() - looked_ms;
      const seen = { round: number, interval_ms, elapsed_ms, present_pages, changed_pages };
      return { ...seen, sent, link_bytes_s, rtt_ms, scan_ms, cpu_share };
    };
    const watch = watchRound({
      measure,
      cut_ms: mayCut ? Math.min(CUT_MS, present_pages * PAGE_BYTES * FILL_MS_PER_BYTE) : 0,
      cut: () => this.#sender.cutRounds(),
      nearEnd,
    });
    try {
      await unlessAborted(Promise.all(sent), signal);
    } finally {
      watch.stop();
    }
    this.#rounds += 1;
    return { measured: measure(), isCut: watch.isCut() };
  }

  /** The first look has ended, if it was begun ahead; how, the round hears. */
  async looked(): Promise<void> {
    await Promise.allSettled([this.#looking]);
  }

  #look(signal: AbortSignal): Promise<Look> {
    const known = this.#isAhead ? this.#looking : undefined;
    this.#isAhead = false;
    return (this.#looking = known ?? this.#processes().then((pids) => lookAt(this.#tracker, pids, signal)));
  }

  /** One more round right before the freeze, where there were any. */
  async lastRound(signal: AbortSignal): Promise<void> {
    if (this.#rounds > 0) await this.round(this.#rounds, 1, signal);
  }

  /** The service has just been frozen: from here on what the restore itself asks for is sent, long before the rest. */
  async frozen(): Promise<void> {
    await this.#sender.frozen();
    this.#frozenAt = { ms: performance.now(), sent_bytes: bytesOf(this.#sender.stats()) };
  }

  /** How much of the memory that must be there in the end is there since the freeze; a total once CRIU has said it. */
  arrived(): { bytes: number; total_bytes: number | null; elapsed_ms: number } {
    const { ms, sent_bytes } = this.#frozenAt ?? { ms: performance.now(), sent_bytes: 0 };
    const total_bytes = this.#final_bytes === 0 ? null : this.#final_bytes;
    // What is asked for while it is sent anyway may be counted twice.
    const bytes = Math.min(bytesOf(this.#sender.stats()) - sent_bytes, total_bytes ?? Number.POSITIVE_INFINITY);
    return { bytes, total_bytes, elapsed_ms: performance.now() - ms };
  }

  /** The freeze is near: from here on nothing here keeps the disk busy, for which both journals would have to wait. */
  async calm(): Promise<void> {
    await this.#cache?.calm();
  }

  /**
   * The service runs at the destination. Once that has every page, none passes by here any more, and the cache can be
   * finished; how that ended is asked when this is closed.
   */
  handedOver(): void {
    this.#cache?.resume();
    this.#sealed?.then(() => this.#cache?.finish()).catch(() => undefined);
  }

  /**
   * Finds what was written last and begins to send it; `frozen` must have been called. Not while CRIU dumps, which
   * borrows the processes for a while. Resolves before anything has arrived. Pages of executable mappings wait for `seal`,
   * because CRIU borrows one of them for a moment.
   */
  async find(): Promise<void> {
    const pids = await this.#processes();
    const found = await this.#tracker.final(pids);
    const works: (() => Promise<void>)[] = [];
    for (const [pid, pages] of found) {
      const { name } = await this.#open(pid);
      const maps = await mappings(pid);
      works.push(() => this.#push(name, pages, maps));
    }
    // Begun together and awaited by `seal`; a failure meanwhile must not count as unheard.
    this.#begin(works.map((work) => work()));
  }

  #begin(works: readonly Promise<unknown>[]): void {
    for (const work of works) work.catch(() => undefined);
    this.#final.push(...works);
  }

  /**
   * After the dump: what the restore itself will touch is sent ahead of everything, then what is likely to be touched right
   * after. Resolves before it has arrived.
   */
  async sendFirst(imagesDir: string): Promise<void> {
    const contents = await this.#contentsOf(imagesDir);
    const touched = new Map(firstTouched(imagesDir, contents).map(({ name, ranges }) => [name, ranges]));
    const present = new Map(contents.map(({ name, ranges }) => [name, ranges]));
    const small: { name: SpaceName; ranges: PageRange[] }[] = [];
    for (const pid of await this.#processes()) {
      const { name } = await this.#open(pid);
      this.#begin([this.#sender.send(name, touched.get(name) ?? [], 'final')]);
      for (const mapping of await mappings(pid)) {
        const ranges = intersectRanges([rangeOf(mapping)], present.get(name) ?? []);
        if (mapping.lazy && !mapping.executable) small.push({ name, ranges });
      }
    }
    // What every part of a program uses lies in small mappings.
    const { link_bytes_s } = this.#sender.stats();
    // Where it has not carried anything yet, a connection sends little at once by itself (RFC 6928).
    let left = link_bytes_s === 0 ? FIRST_PAGES : Math.min(FIRST_PAGES, (link_bytes_s * FIRST_MS) / 1000 / PAGE_BYTES);
    for (const { name, ranges } of small.toSorted((a, b) => countPages(a.ranges) - countPages(b.ranges))) {
      left -= countPages(ranges);
      if (left < 0) return;
      this.#begin([this.#sender.send(name, ranges, 'final')]);
    }
  }

  async #push(name: SpaceName, pages: FinalPages, maps: readonly Mapping[]): Promise<void> {
    const executable = normaliseRanges(maps.filter((mapping) => mapping.executable).map(rangeOf));
    const changed = subtractRanges(normaliseRanges(pages.changed), executable);
    const rest = subtractRanges(normaliseRanges(pages.rest), executable);
    this.#queued.set(name, normaliseRanges([...changed, ...rest]));
    // Tells nearly everything with a few bytes, so it need not wait for anything.
    const unchanged = pages.proof === 'unchanged' ? this.#sender.unchanged(name, rest) : undefined;
    unchanged?.catch(() => undefined);
    await this.#released.promise;
    const sent = this.#sender.send(name, inOrderOfUse(changed, maps), 'final');
    // It is awaited below; its failure may come before.
    sent.catch(() => undefined);
    const lacking = await (unchanged ?? this.#sender.confirm(name, rest));
    if (lacking.length > 0) await this.#sender.send(name, lacking, 'final');
    await sent;
  }

  /**
   * After the dump, where nobody waits for the memory before the service runs: finding what was written last and sealing
   * go on while the destination restores. `found` must have resolved before the commit.
   */
  findAndSeal(imagesDir: string, ended: Promise<void>, found: (finding: Promise<void>) => Promise<void>): void {
    // Finding keeps this thread busy, and the request that the destination waits for shall have left before.
    this.#finding = Promise.all([ended, turns(REQUEST_TURNS)])
      .then(() => found(this.find()))
      .then(() => this.seal(imagesDir));
    this.#finding.catch(() => undefined);
  }

  /** It is known which pages still have to travel. */
  async found(): Promise<void> {
    await this.#finding;
  }

  /**
   * Lets go of what `find` and `seal` have queued. Where the service runs before its memory has arrived, that is when it
   * does: until then, reading and sending would only keep dump, images and restore from the processor and the link.
   */
  release(): void {
    this.#released.resolve();
  }

  /** The same, as soon as a request that has just been made is on the wire. */
  async releaseAfterRequest(): Promise<void> {
    await turns(REQUEST_TURNS);
    this.release();
  }

  /**
   * CRIU has dumped, so it is known which pages must be there in the end. Sends what `find` could not know of;
   * `complete` then tells when the destination has everything.
   */
  async seal(imagesDir: string): Promise<void> {
    const contents = await this.#contentsOf(imagesDir);
    this.#final_bytes = contents.reduce((sum, { ranges }) => sum + countPages(ranges), 0) * PAGE_BYTES;
    this.#sealed = this.#noting(this.#finish(contents));
  }

  /** What the dump left out: the images are read once. */
  #contentsOf(imagesDir: string): Promise<SpaceContents[]> {
    return (this.#contents ??= lazyContents(imagesDir));
  }

  async #finish(contents: readonly SpaceContents[]): Promise<void> {
    await this.#released.promise;
    const late = contents.map(({ name, ranges }) =>
      this.#sender.send(name, subtractRanges(normaliseRanges(ranges), this.#queued.get(name) ?? []), 'final'),
    );
    await Promise.all([...this.#final, ...late]);
    await this.#sender.seal(contents);
  }

  /**
   * After a restart of this agent while memory was still on its way: the processes are frozen here as they were, so
   * every page is compared with what the destination has, and sent where it differs.
   */
  async resume(imagesDir: string): Promise<void> {
    const contents = await this.#contentsOf(imagesDir);
    for (const pid of await this.#processes()) await this.#open(pid);
    const rest = contents.map(async ({ name, ranges }) => {
      const lacking = await this.#sender.confirm(name, ranges);
      if (lacking.length > 0) await this.#sender.send(name, lacking, 'final');
    });
    this.#sealed = this.#noting(Promise.all(rest).then(() => this.#sender.seal(contents)));
  }

  /** Nobody waits for it while the service is being handed over, so its failure is kept for whoever asks later. */
  #noting(sealed: Promise<void>): Promise<void> {
    sealed.catch((error: unknown) => {
      if (!this.#closed.signal.aborted) this.#failure = toUmsError(error);
    });
    return sealed;
  }

  /** Resolves when the destination has every page. */
  complete(signal: AbortSignal): Promise<void> {
    if (this.#sealed === undefined) throw new Error('nothing has been sealed yet');
    return unlessAborted(this.#sealed, signal);
  }

  /**
   * After `seal`: resolves when the rest arrives no later than a destination that begins to restore now has done with it,
   * or has arrived. While that takes long, the disk has time for what is taken for the cache.
   */
  async nearlyComplete(signal: AbortSignal): Promise<void> {
    if (this.#isNear()) return;
    this.#cache?.resume();
    const near = Promise.withResolvers<void>();
    const looking = setInterval(() => {
      if (this.#isNear()) near.resolve();
    }, NEAR_LOOK_MS);
    try {
      await Promise.race([near.promise, this.complete(signal)]);
    } finally {
      clearInterval(looking);
      // Not waited for: the end of it passes beside the restore.
      void this.calm();
    }
  }

  #isNear(): boolean {
    const { bytes, total_bytes, elapsed_ms } = this.arrived();
    const { link_bytes_s, rtt_ms } = this.#sender.stats();
    if (total_bytes === null || rtt_ms > RESTORE_RTT_MS) return false;
    // After rounds it is known how fast the link is before anything was sent.
    const bytes_ms = Math.max(link_bytes_s / 1000, bytes / Math.max(elapsed_ms, 1));
    return total_bytes - bytes <= bytes_ms * (RESTORE_MS + total_bytes * FILL_MS_PER_BYTE);
  }

  report(): MemoryReport {
    const stats = this.#sender.stats();
    return {
      path: 'pages',
      tracker: this.#rounds === 0 ? 'none' : this.#tracker.kind,
      rounds: this.#rounds,
      raw_bytes: stats.pages * PAGE_BYTES,
      zero_bytes: stats.zero_bytes,
      reference_bytes: stats.reference_bytes,
      wire_bytes: stats.wire_bytes,
      filling_ms: null,
      faults: 0,
      demands: stats.demands,
    };
  }

  /** Nobody waits for it: removing gigabytes takes its time. */
  #trimCaches(): void {
    trimPageCaches(this.#context).catch((error: unknown) =>
      this.#context.log.warn({ err: toUmsError(error) }, 'old caches of pages could not be removed'),
    );
  }

  /** `moved`: everything has arrived, so the copies taken on the way are kept for when the service comes back. */
  async close(moved = false): Promise<void> {
    if (this.#closed.signal.aborted) return;
    this.#closed.abort(new Error('the memory need not move any more'));
    // A helper may be within a process of the service, and is not taken away from there.
    await Promise.allSettled([this.#looking]);
    const ends: PromiseSettledResult<unknown>[] = await Promise.allSettled([
      this.#sender.close(),
      this.#tracker.close(),
    ]);
    // Only now, because until it is closed the sender may still add to it.
    ends.push(...(await Promise.allSettled([moved ? this.#cache?.finish() : this.#cache?.discard()])));
    if (moved) this.#trimCaches();
    for (const { memory } of this.#moving.values()) memory.close();
    this.#moving.clear();
    for (const end of ends) {
      if (end.status === 'rejected')
        this.#context.log.warn(
          { migration: this.#row.id, err: toUmsError(end.reason) },
          'the page path did not end well',
        );
    }
  }

  /** The service's processes now; spaces of those that have ended are dropped. */
  async #processes(): Promise<number[]> {
    const pids = await this.#context.driver(this.#row.engine).processes(this.#row.handle);
    for (const [pid, { name, memory }] of this.#moving) {
      // A pid may have been given to another process meanwhile.
      if (pids.includes(pid) && memory.exists()) continue;
      memory.close();
      this.#moving.delete(pid);
      this.#sender.removeSpace(name);
    }
    return pids;
  }

  async #open(pid: number): Promise<Moving> {
    const known = this.#moving.get(pid);
    if (known !== undefined) return known;
    const name: SpaceName = `process:${await pidInside(pid)}`;
    const memory = await ProcessMemory.open(pid);
    const moving: Moving = { name, memory };
    this.#sender.addSpace(name, memory);
    this.#moving.set(pid, moving);
    return moving;
  }
}

function bytesOf({ zero_bytes, reference_bytes, data_bytes, confirmed_bytes }: SenderStats): number {
  return zero_bytes + reference_bytes + data_bytes + confirmed_bytes;
}

/** The largest mapping that CRIU leaves to us. */
async function largestOf(pid: number): Promise<PageRange[]> {
  const lazy = (await mappings(pid)).filter((mapping) => mapping.lazy);
  return lazy
    .toSorted((a, b) => b.count - a.count)
    .slice(0, 1)
    .map(rangeOf);
}

function rangeOf(mapping: Mapping): PageRange {
  return { first: mapping.first, count: mapping.count };
}

/** Small mappings first: they hold what every part of a program uses, while big ones are mostly its data. */
function inOrderOfUse(present: readonly PageRange[], maps: readonly Mapping[]): PageRange[] {
  return maps
    .filter((mapping) => mapping.lazy)
    .toSorted((a, b) => a.count - b.count)
    .flatMap((mapping) => intersectRanges([rangeOf(mapping)], present));
}

async function lookAt(tracker: DirtyTracker, pids: readonly number[], signal: AbortSignal): Promise<Look> {
  const looked_ms = performance.now();
  const found = await tracker.round(pids, signal);
  return { looked_ms, scan_ms: performance.now() - looked_ms, found };
}

/** The process's id in the innermost namespace it lives in, which is CRIU's id of it (proc(5): NSpid). */
async function pidInside(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  return Number(/^NSpid:.*?(\d+)$/m.exec(status)?.[1] ?? pid);
}

/** A process may end between being found and being looked at: then there is nothing of it to send. */
function unlessVanished(error: unknown): undefined {
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  if (code === 'ENOENT' || code === 'ESRCH') return undefined;
  throw error;
}

async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn += 1) await setImmediate();
}
