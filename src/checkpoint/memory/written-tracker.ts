import {
  countPages,
  intersectRanges,
  normaliseRanges,
  type PageRange,
  subtractRanges,
} from '#src/transfer/pages/model.ts';
import { toUmsError } from '#src/telemetry/errors.ts';
import { HashedProcess } from './hash-tracker.ts';
import { mappingsNow } from './mappings.ts';
import type { DirtyTracker, FinalPages, RoundPages } from './model.ts';
import { presentPages } from './pagemap.ts';
import { ProcessMemory } from './process-memory.ts';
import { mayBeWrittenUnseen } from './unseen-writes.ts';
import { type HelperAnswer, WrittenHelper } from './written-helper.ts';
import { type Findings, parseFindings, spansOf } from './written-regions.ts';

interface Tracked {
  /** Holds the process itself, so that another with its pid is not taken for it. */
  readonly memory: ProcessMemory;
  /** Instead of the kernel's marks, where it could not be attached. */
  hashed: HashedProcess | undefined;
  /** Why it is hashed. */
  reason: string | undefined;
  known: PageRange[];
  odd: Set<number>;
  unseen: boolean;
  /** How long one of its threads was stopped to attach to it. */
  stopped_us: number;
}

/**
 * The kernel marks the pages that are written (written.pl says how). It sees every write through the program's own page
 * tables, also those that the kernel makes for it in read(2) and the like. It does not see what a device writes into
 * pages that were handed to it before a round and completes after it (direct input, io_uring's buffers): such programs
 * are found by their open files, and all their memory is confirmed by digest at the end.
 */
export class WrittenTracker implements DirtyTracker {
  readonly kind = 'written';
  readonly fallback = undefined;
  #helper: WrittenHelper;
  readonly #tracked = new Map<number, Tracked>();

  constructor(helper: WrittenHelper) {
    this.#helper = helper;
  }

  /** Per process: how long a thread was stopped, and why its pages are hashed instead, if they are. */
  details(): { pid: number; stopped_us: number; hashed: string | undefined }[] {
    return [...this.#tracked].map(([pid, { stopped_us, reason }]) => ({ pid, stopped_us, hashed: reason }));
  }

  async round(pids: readonly number[], signal: AbortSignal): Promise<Map<number, RoundPages>> {
    if (this.#helper.failed) await this.#startAgain();
    const wanted = new Set(pids);
    for (const pid of this.#tracked.keys()) if (!wanted.has(pid)) this.#drop(pid);
    const found = new Map<number, RoundPages>();
    try {
      for (const pid of wanted) {
        signal.throwIfAborted();
        const pages = await this.#roundOf(pid, signal);
        if (pages !== undefined) found.set(pid, pages);
      }
      return found;
    } catch (error) {
      // Marks were taken back of pages that nobody will be told of.
      for (const pid of this.#tracked.keys()) this.#drop(pid);
      throw error;
    }
  }

  async final(pids: readonly number[]): Promise<Map<number, FinalPages>> {
    // All questions are asked at once: the service stands still. Letting go of the processes takes ten times as long, and
    // CRIU does not mind their registration, so that is left to close().
    const answers = await Promise.all([...new Set(pids)].map(async (pid) => [pid, await this.#finalOf(pid)] as const));
    return new Map(answers.flatMap(([pid, pages]) => (pages === undefined ? [] : [[pid, pages] as const])));
  }

  async close(): Promise<void> {
    for (const pid of this.#tracked.keys()) this.#drop(pid);
    await this.#helper.end();
  }

  async #roundOf(pid: number, signal: AbortSignal): Promise<RoundPages | undefined> {
    const started = performance.now();
    const tracked = await this.#attached(pid);
    if (tracked?.hashed !== undefined) return tracked.memory.exists() ? tracked.hashed.round(signal) : undefined;
    const findings = tracked === undefined ? undefined : await this.#findings(pid, tracked);
    if (tracked === undefined || findings === undefined) return this.#drop(pid);
    if (findings === 'hash') return this.#roundOf(pid, signal);
    const { written, others } = findings;
    tracked.odd = new Set(findings.odd);
    const known = normaliseRanges([...tracked.known, ...written]);
    const present = normaliseRanges(others);
    const gone = subtractRanges(known, present);
    tracked.known = subtractRanges(known, gone);
    tracked.unseen ||= await mayBeWrittenUnseen(pid);
    const changed = subtractRanges(normaliseRanges(written), gone);
    return { changed, gone, present_pages: countPages(present), elapsed_ms: performance.now() - started };
  }

  /** Undefined: vanished. An address space that was replaced by exec is attached to afresh, once. */
  async #findings(pid: number, tracked: Tracked): Promise<Findings | 'hash' | undefined> {
    for (const again of [true, false]) {
      const mappings = mappingsNow(pid);
      if (mappings.length === 0) return tracked.memory.exists() ? { odd: [], written: [], others: [] } : undefined;
      const answer = await this.#helper.ask('R', pid, spansOf(mappings, tracked.odd));
      if (answer.status === 'done') return parseFindings(answer.payload);
      if (answer.status === 'vanished') return undefined;
      if (answer.status === 'replaced' && again && (await this.#attach(pid, tracked))) continue;
      if (tracked.hashed === undefined) await this.#hashInstead(pid, tracked, wordsOf(answer));
      return 'hash';
    }
    return undefined;
  }

  async #finalOf(pid: number): Promise<FinalPages | undefined> {
    const tracked = this.#tracked.get(pid);
    if (tracked?.hashed !== undefined) return tracked.memory.exists() ? tracked.hashed.final() : undefined;
    const mappings = mappingsNow(pid);
    // It has ended and waits to be waited for: that is dumped as well.
    if (mappings.length === 0 && tracked?.memory.exists() === true)
      return { changed: [], rest: [], proof: 'unchanged' };
    const lazy = normaliseRanges(mappings.filter((mapping) => mapping.lazy));
    const findings = await this.#finalFindings(pid, spansOf(mappings, tracked?.odd ?? new Set()), lazy);
    if (findings === undefined) return undefined;
    const others = intersectRanges(normaliseRanges(findings.others), lazy);
    const rest = intersectRanges(others, tracked?.memory.exists() === true ? tracked.known : []);
    const written = intersectRanges(normaliseRanges(findings.written), lazy);
    return {
      changed: normaliseRanges([...written, ...subtractRanges(others, rest)]),
      rest,
      proof: tracked?.unseen === true ? 'confirm' : 'unchanged',
    };
  }

  /** If the helper fails now, nothing is known of any page, and all of them count as written. */
  async #finalFindings(pid: number, spans: number[], lazy: readonly PageRange[]): Promise<Findings | undefined> {
    try {
      const answer = await this.#helper.ask('F', pid, spans);
      if (answer.status === 'vanished') return undefined;
      if (answer.status === 'done') return parseFindings(answer.payload);
    } catch (error) {
      if (toUmsError(error).code !== 'UMS_E_CHILD') throw error;
    }
    return { odd: [], written: await presentPages(pid, lazy), others: [] };
  }

  async #attached(pid: number): Promise<Tracked | undefined> {
    const before = this.#tracked.get(pid);
    if (before?.memory.exists() === true) return before;
    this.#drop(pid);
    const memory = await ProcessMemory.openLiving(pid);
    if (memory === undefined) return undefined;
    const tracked: Tracked = {
      memory,
      hashed: undefined,
      reason: undefined,
      known: [],
      odd: new Set(),
      unseen: false,
      stopped_us: 0,
    };
    this.#tracked.set(pid, tracked);
    // A process that has ended but was not waited for has no memory to attach to.
    if (mappingsNow(pid).length > 0) await this.#attach(pid, tracked);
    return tracked;
  }

  async #attach(pid: number, tracked: Tracked): Promise<boolean> {
    const answer = await this.#helper.ask('A', pid);
    if (answer.status === 'done') tracked.stopped_us = answer.payload.readUInt32LE(0);
    if (answer.status === 'failed') await this.#hashInstead(pid, tracked, wordsOf(answer));
    return answer.status === 'done';
  }

  async #hashInstead(pid: number, tracked: Tracked, reason: string): Promise<void> {
    tracked.reason = reason;
    tracked.hashed = await HashedProcess.open(pid);
    await this.#helper.ask('D', pid);
  }

  async #startAgain(): Promise<void> {
    await this.close();
    this.#helper = new WrittenHelper();
  }

  #drop(pid: number): undefined {
    const tracked = this.#tracked.get(pid);
    if (tracked === undefined) return;
    this.#tracked.delete(pid);
    tracked.memory.close();
    tracked.hashed?.close();
    // If the helper fails meanwhile, it has let go of the process as well.
    void this.#helper.ask('D', pid).catch(() => undefined);
  }
}

function wordsOf(answer: HelperAnswer): string {
  return answer.status === 'failed' ? answer.payload.toString('utf8').slice(0, 200) : `it has ${answer.status}`;
}
