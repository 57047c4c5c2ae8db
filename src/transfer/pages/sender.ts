import { randomBytes } from 'node:crypto';
import type { Duplex } from 'node:stream';
import { blocksOf } from './apply.ts';
import { Sent } from './builder.ts';
import type { PageCacheWriter } from './cache.ts';
import { encodeRanges, Flag, inFrames } from './frames.ts';
import {
  countPages,
  normaliseRanges,
  PAGE_BYTES,
  type PageRange,
  type PageReader,
  pagesFailed,
  type SenderStats,
  type SendMode,
  type SendReport,
  type SpaceContents,
  type SpaceName,
  SPACES_MAX,
  subtractRanges,
} from './model.ts';
import { PageBytes } from './page-table.ts';
import { SenderQueue } from './sender-queue.ts';
import { confirmLists, Job, makeConfirm, type Request, type SenderSpace } from './sender-work.ts';

export interface SenderOptions {
  /** Opens a connection: 0 is for control and demands, 1 to `connections` for bulk. Called again after a break. */
  readonly open: (index: number, signal: AbortSignal) => Promise<Duplex>;
  readonly connections: number;
  readonly rate_bytes_s?: number | undefined;
  readonly compression: 'auto' | 'none' | 'lz4' | 'zstd';
  /** Whether pages that the receiver holds already are looked for: where that pays, or never. */
  readonly dedupe?: 'auto' | 'off';
  /** How long a broken link is tried again before it counts as lost. */
  readonly reconnect_ms: number;
  /** How long nothing may come on a connection that waits for an answer. */
  readonly stall_ms?: number;
  /** 32 hexadecimal digits. A sender that is started again with the one it had goes on with what the receiver holds. */
  readonly session?: string;
  /** Takes copies of the pages that are sent, for a move of the service back to here. */
  readonly cache?: PageCacheWriter | undefined;
  readonly onProgress?: (stats: SenderStats) => void;
  readonly onLink?: (up: boolean) => void;
  readonly signal?: AbortSignal;
}

const CONNECTIONS_MAX = 32;
const SEAL_ATTEMPTS = 8;
/** Pages that a block of a comparison has: all of it first, then only where it differed. */
const CONFIRM_STEPS = [256, 16, 1];

/**
 * The source's end of the page path. Rounds while the service runs (`live`) come one after the other; once the first call
 * for final pages is made the service must stay frozen, and calls may overlap. Demands of the receiver overtake all else.
 * After a failure every call rejects with the same error.
 */
export class PageSender {
  readonly #queue: SenderQueue;
  readonly #spaces = new Map<SpaceName, SenderSpace>();
  readonly #finalJobs = new Set<Promise<unknown>>();
  #live: Promise<unknown> = Promise.resolve();
  #cuts = 0;
  #final = false;

  private constructor(options: SenderOptions) {
    this.#queue = new SenderQueue(options, (name) => this.#space(name));
  }

  static async start(options: SenderOptions): Promise<PageSender> {
    if (options.connections < 1 || options.connections > CONNECTIONS_MAX) {
      throw pagesFailed(`between 1 and ${CONNECTIONS_MAX} connections are possible`, 'ums');
    }
    const session = options.session ?? randomBytes(16).toString('hex');
    const sender = new PageSender({ ...options, session });
    await sender.#queue.start();
    return sender;
  }

  addSpace(name: SpaceName, reader: PageReader): void {
    this.#space(name).reader = reader;
  }

  /** The process vanished: nothing more can be read of it. */
  removeSpace(name: SpaceName): void {
    const space = this.#spaces.get(name);
    if (space !== undefined) space.reader = undefined;
  }

  /** Sends these pages as they are now. Resolves when the receiver has acknowledged them. */
  async send(name: SpaceName, ranges: readonly PageRange[], mode: SendMode): Promise<SendReport> {
    if (mode === 'live') return this.#sendLive(name, ranges);
    await this.frozen();
    return this.#sendFinal(name, ranges);
  }

  /**
   * What is under way of rounds arrives, and the rest of them is left out: calls for live pages that were made before this
   * one resolve early. After the freeze `unchanged` and `confirm` tell what the receiver lacks, or holds as it was before.
   */
  cutRounds(): void {
    this.#cuts += 1;
    this.#queue.cutRounds();
  }

  /**
   * The service is frozen: from here on pages have their final content, nothing of a round may still be on the way, and
   * what a process waits for is sent at once, even while nothing else is.
   */
  async frozen(): Promise<void> {
    this.#final = true;
    await this.#live;
    this.#queue.freeze();
  }

  /** After the freeze: what the receiver holds of these is final, without being read. Returns what it lacks. */
  async unchanged(name: SpaceName, ranges: readonly PageRange[]): Promise<PageRange[]> {
    await this.frozen();
    const space = this.#space(name);
    const all = normaliseRanges(ranges);
    const sent = subtractRanges(all, space.leftOut);
    const requests = inFrames(sent).map((list) =>
      this.#queue.ask(space, () => ({ type: 'unchanged', space: space.id, meta: encodeRanges(list) })),
    );
    const held = subtractRanges(sent, await this.#answers(requests));
    this.#held(space, held);
    return subtractRanges(all, held);
  }

  /** After the freeze: compares these by digest; what is the same is final. Returns what differs, still to be sent. */
  async confirm(name: SpaceName, ranges: readonly PageRange[]): Promise<PageRange[]> {
    await this.frozen();
    const space = this.#space(name);
    const all = normaliseRanges(ranges);
    let differing = all;
    for (const blockPages of CONFIRM_STEPS) {
      if (differing.length === 0) break;
      differing = await this.#compare(space, differing, blockPages);
    }
    this.#held(space, subtractRanges(all, differing));
    return differing;
  }

  /** These pages exist no more. */
  async forget(name: SpaceName, ranges: readonly PageRange[]): Promise<void> {
    await this.#live;
    const space = this.#space(name);
    const normal = normaliseRanges(ranges);
    for (const { first, count } of normal) {
      this.#queue.dedupe.unknown(space.id, first, count);
      space.sent.fill(first, count, Sent.no);
    }
    const requests = inFrames(normal).map((list) =>
      this.#queue.ask(space, () => ({ type: 'forget', space: space.id, meta: encodeRanges(list) })),
    );
    await this.#answers(requests);
  }

  /** The complete list of what must be final. Waits for what is being sent; resolves when the receiver has it all. */
  async seal(contents: readonly SpaceContents[]): Promise<void> {
    await this.frozen();
    for (let attempt = 0; attempt < SEAL_ATTEMPTS; attempt += 1) {
      while (this.#finalJobs.size > 0) await Promise.all(this.#finalJobs);
      const missing = await this.#askForMissing(contents);
      if (missing.length === 0) return;
      await this.#sendMissing(missing);
    }
    throw pagesFailed('the destination never got all of the pages');
  }

  /** These are likely to be wanted first; a hint for what is still waiting to be sent. */
  prefer(name: SpaceName, ranges: readonly PageRange[]): void {
    const space = this.#spaces.get(name);
    if (space !== undefined) this.#queue.prefer(space, normaliseRanges(ranges));
  }

  stats(): SenderStats {
    return this.#queue.stats();
  }

  /** Ends the connections; calls still under way reject. */
  async close(): Promise<void> {
    await this.#queue.close();
  }

  async #sendLive(name: SpaceName, ranges: readonly PageRange[]): Promise<SendReport> {
    if (this.#final) throw pagesFailed('a round came after the freeze', 'ums');
    const before = this.#live;
    const cuts = this.#cuts;
    const run = (async () => {
      await before;
      const space = this.#space(name);
      const isCut = cuts !== this.#cuts;
      space.leftOut = isCut
        ? normaliseRanges([...space.leftOut, ...ranges])
        : subtractRanges(space.leftOut, normaliseRanges(ranges));
      return this.#queue.send(new Job('live'), space, isCut ? [] : ranges);
    })();
    // Only the order matters here; who called hears of a failure.
    this.#live = run.catch(() => undefined);
    return run;
  }

  async #sendFinal(name: SpaceName, ranges: readonly PageRange[]): Promise<SendReport> {
    const run = this.#queue.send(new Job('final'), this.#space(name), ranges);
    this.#finalJobs.add(run);
    try {
      return await run;
    } finally {
      this.#finalJobs.delete(run);
    }
  }

  async #compare(space: SenderSpace, ranges: readonly PageRange[], blockPages: number): Promise<PageRange[]> {
    const unreadable: PageRange[] = [];
    const requests = confirmLists(ranges, blockPages).map((list) => {
      const blocks = blocksOf(list, blockPages);
      const own: PageRange[] = [];
      const request = this.#queue.ask(space, () => makeConfirm(space, blocks, blockPages, own));
      return { request, own };
    });
    const differing = await this.#answers(requests.map(({ request }) => request));
    for (const { own } of requests) unreadable.push(...own);
    return normaliseRanges([...differing, ...unreadable]);
  }

  async #answers(requests: readonly Request[]): Promise<PageRange[]> {
    const lacking: PageRange[] = [];
    for (const request of requests) {
      await request.answered;
      lacking.push(...request.lacking);
    }
    return normaliseRanges(lacking);
  }

  async #askForMissing(contents: readonly SpaceContents[]): Promise<{ space: SenderSpace; ranges: PageRange[] }[]> {
    const lists = contents.flatMap(({ name, ranges }) => {
      const space = this.#space(name);
      return inFrames(normaliseRanges(ranges)).map((list) => ({ space, list }));
    });
    const requests = lists.map(({ space, list }, at) => {
      const flags = at === 0 ? Flag.first : 0;
      return this.#queue.askControl(space, () => ({ type: 'seal', flags, space: space.id, meta: encodeRanges(list) }));
    });
    const flags = lists.length === 0 ? Flag.first | Flag.last : Flag.last;
    const last = this.#queue.askControl(undefined, () => ({ type: 'seal', flags }));
    await this.#answers([...requests, last]);
    const byId = new Map([...this.#spaces.values()].map((space) => [space.id, space]));
    return last.missing.flatMap(({ space: id, ranges }) => {
      const space = byId.get(id);
      return space === undefined ? [] : [{ space, ranges }];
    });
  }

  async #sendMissing(missing: readonly { space: SenderSpace; ranges: PageRange[] }[]): Promise<void> {
    const reports = await Promise.all(
      missing.map(({ space, ranges }) => {
        for (const { first, count } of ranges) space.sent.fill(first, count, Sent.no);
        return this.#sendFinal(space.name, ranges);
      }),
    );
    if (reports.every((report) => report.pages === 0)) {
      throw pagesFailed('pages that must be sent are no longer there to be read', 'source');
    }
  }

  #held(space: SenderSpace, ranges: readonly PageRange[]): void {
    for (const { first, count } of ranges) space.sent.fill(first, count, Sent.held);
    this.#queue.confirmed_bytes += countPages(ranges) * PAGE_BYTES;
  }

  #space(name: SpaceName): SenderSpace {
    const known = this.#spaces.get(name);
    if (known !== undefined) return known;
    if (this.#spaces.size >= SPACES_MAX) throw pagesFailed(`there are more than ${SPACES_MAX} processes and images`);
    const space: SenderSpace = { id: this.#spaces.size, name, reader: undefined, sent: new PageBytes(), leftOut: [] };
    this.#spaces.set(name, space);
    return space;
  }
}
