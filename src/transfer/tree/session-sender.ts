import type { Duplex } from 'node:stream';
import { setTimeout as pause } from 'node:timers/promises';
import { UmsError } from '#src/telemetry/errors.ts';
import { BlockStore, newBudget } from './blocks.ts';
import { ByteReader, malformed } from './byte-reader.ts';
import { DumpView } from './dump-view.ts';
import { Facts } from './facts.ts';
import { ReadyPacks, sendTree, type TreeLocation } from './send.ts';
import { type Answer, answerSchema, FrameWriter, parseFrame, readFrame } from './session-frames.ts';
import { PREPARED_TREES } from './session-receiver.ts';
import type { Snapshot } from './snapshot.ts';

export interface NamedTree extends TreeLocation {
  id: string;
}

export interface RoundOptions {
  /** Files ("dev:ino") whose times cannot be trusted: see sharedWritableMappings. */
  alwaysDirty?: ReadonlySet<string> | Promise<ReadonlySet<string>> | undefined;
  signal?: AbortSignal | undefined;
  onBytes?: ((bytes: number) => void) | undefined;
}

export interface FinalOptions extends RoundOptions {
  /** Where CRIU makes directories while it dumps, as paths in the container, besides /tmp. */
  temporary?: readonly string[];
}

/** What a round over all trees did. */
export interface TreeRound {
  /** Entries of every type that were carried. */
  files: number;
  bytes: number;
  deletions: number;
  /** Entries that the trees hold. */
  entries: number;
  /** From its beginning until the other side had done it. */
  elapsed_ms: number;
}

const LAST_WORD_MS = 500;
const CLOSE_LIMIT_MS = 5000;

interface PassOptions extends RoundOptions {
  alwaysDirty: ReadonlySet<string> | undefined;
}

interface TreeState {
  tree: NamedTree;
  since: Snapshot | undefined;
  ready: ReadyPacks;
  store: BlockStore;
}

/**
 * Sends all trees of a service in rounds over one stream: whole at first, then what changed. After a failure nothing is
 * known of the other side any more, so the session is over then.
 */
export class TreesSender {
  readonly #stream: Duplex;
  readonly #writer: FrameWriter;
  readonly #reader: ByteReader;
  readonly #states: TreeState[];
  readonly #facts = new Facts();
  #passes = 0;
  /** Answers come one after the other; each waits for the one before. */
  #answers: Promise<unknown> = Promise.resolve();

  constructor(stream: Duplex, trees: readonly NamedTree[]) {
    this.#stream = stream;
    // Whoever reads or writes next gets to know it.
    stream.on('error', () => undefined);
    stream.once('close', () => this.#endReady());
    this.#writer = new FrameWriter(stream);
    this.#reader = new ByteReader(stream, Number.MAX_SAFE_INTEGER);
    const budget = newBudget();
    this.#states = trees.map((tree) => ({
      tree,
      since: undefined,
      ready: new ReadyPacks(tree.path),
      store: new BlockStore(budget),
    }));
  }

  /** Passes that were sent over this stream or are about to be, those of a round that has just been asked for included. */
  get passes(): number {
    return this.#passes;
  }

  /** A round while the service runs. */
  round(options: RoundOptions): Promise<TreeRound> {
    return this.#round(options, true, new Map());
  }

  /** Starts on both sides what the final round may need. */
  prepare(signal?: AbortSignal): Promise<void> {
    return this.#guarded(signal, async () => {
      await this.#writer.write('R');
      const answer = this.#answer();
      await this.#writer.flush();
      if (Facts.isPossible) this.#facts.start();
      for (const { tree, ready, since } of this.#states.slice(0, PREPARED_TREES)) {
        // A program that waits in a mounted file system keeps the engine from unmounting it.
        if (tree.id === 'shm') continue;
        ready.prepare(since !== undefined && since.attributes.size > 0 ? 2 : 1);
      }
      await answer;
    });
  }

  /**
   * The round of the frozen service, exact or an error. When this method has returned (its promise need not be settled),
   * CRIU's dump may begin: where CRIU makes directories was looked at by then.
   */
  final(options: FinalOptions): Promise<TreeRound> {
    // It is waited for later; by then it may have failed.
    Promise.resolve(options.alwaysDirty).catch(() => undefined);
    const views = new Map<string, DumpView>();
    try {
      for (const { tree, since } of this.#states) {
        views.set(tree.id, new DumpView(tree.path, options.temporary ?? [], since));
      }
    } catch (error) {
      return Promise.reject(error);
    }
    return this.#round(options, false, views);
  }

  /** Ends the session: the other side ends the programs it has waiting. Returns at once. */
  close(): void {
    this.#endReady();
    if (this.#stream.destroyed || this.#stream.writableEnded) return;
    this.#stream.end();
    const timer = setTimeout(() => this.#stream.destroy(), CLOSE_LIMIT_MS).unref();
    const ended = this.#answers.then(() => readFrame(this.#reader)).catch(() => undefined);
    void ended.finally(() => {
      clearTimeout(timer);
      this.#stream.destroy();
    });
  }

  #endReady(): void {
    for (const { ready } of this.#states) ready.close();
    this.#facts.close();
  }

  #round(options: RoundOptions, live: boolean, views: ReadonlyMap<string, DumpView>): Promise<TreeRound> {
    const started = performance.now();
    this.#passes += this.#states.length;
    return this.#guarded(options.signal, async () => {
      const round: TreeRound = { files: 0, bytes: 0, deletions: 0, entries: 0, elapsed_ms: 0 };
      const snapshots: Snapshot[] = [];
      const answers: Promise<Answer>[] = [];
      const alwaysDirty = await options.alwaysDirty;
      for (const state of this.#states) {
        const snapshot = await this.#pass(state, { ...options, alwaysDirty }, live, views.get(state.tree.id), round);
        snapshots.push(snapshot);
        answers.push(this.#answer());
        // It is applied while the next one is read.
        await this.#writer.flush();
      }
      await Promise.all(answers);
      this.#states.forEach((state, at) => (state.since = snapshots[at]));
      round.elapsed_ms = performance.now() - started;
      return round;
    });
  }

  async #pass(
    state: TreeState,
    options: PassOptions,
    live: boolean,
    view: DumpView | undefined,
    round: TreeRound,
  ): Promise<Snapshot> {
    const { tree, since, ready, store } = state;
    const { alwaysDirty, signal, onBytes } = options;
    const sending = sendTree({
      tree,
      since,
      live,
      view,
      ready: live ? undefined : ready,
      parts: Facts.isPossible ? { store, facts: this.#facts } : undefined,
      ...(alwaysDirty && { alwaysDirty }),
      ...(signal && { signal }),
      ...(onBytes && { onBytes }),
    });
    await this.#writer.writeJson('P', { tree: tree.id });
    for await (const chunk of sending.stream) await this.#writer.write('D', chunk);
    await this.#writer.write('E');
    const result = sending.result();
    round.files += result.files;
    round.bytes += result.bytes;
    round.deletions += result.deletions;
    round.entries += result.snapshot.count;
    return result.snapshot;
  }

  /** The answer to what was written last. */
  #answer(): Promise<Answer> {
    const answer = this.#answers.then(async () => {
      const frame = await readFrame(this.#reader);
      if (frame?.kind !== 'A') throw malformed('has no answer');
      const value = parseFrame(frame, answerSchema);
      if ('error' in value) {
        const error = UmsError.fromReport(value.error);
        // Whoever is still sending learns it from the stream.
        this.#stream.destroy(error);
        throw error;
      }
      return value;
    });
    answer.catch(() => undefined);
    this.#answers = answer;
    return answer;
  }

  async #guarded<T>(signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
    const abort = (): void => {
      this.#stream.destroy();
    };
    signal?.addEventListener('abort', abort, { once: true });
    try {
      signal?.throwIfAborted();
      return await work();
    } catch (error) {
      this.#endReady();
      // What the other side said is a better reason than that the stream broke.
      const said = this.#stream.destroyed ? await this.#lastWord() : undefined;
      this.#stream.destroy();
      signal?.throwIfAborted();
      throw said ?? error;
    } finally {
      signal?.removeEventListener('abort', abort);
    }
  }

  #lastWord(): Promise<unknown> {
    const said = this.#answers.then(
      () => undefined,
      (reason: unknown) => (reason instanceof UmsError ? reason : undefined),
    );
    return Promise.race([said, pause(LAST_WORD_MS, undefined, { ref: false })]);
  }
}
