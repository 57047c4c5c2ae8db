import type { Duplex } from 'node:stream';
import { UmsError } from '#src/telemetry/errors.ts';
import { ReceivingConnection } from './receiving-connection.ts';
import { applyConfirm, applyData } from './apply.ts';
import { decodeRanges, encodeHead, encodeRanges, Flag, type Frame, inFrames } from './frames.ts';
import { blake3Of } from './digest.ts';
import { encodeDemand } from './messages.ts';
import {
  type PageRange,
  pagesFailed,
  type ReceiverStatus,
  type SpaceContents,
  spaceNameSchema,
  type SpaceName,
  SPACES_MAX,
} from './model.ts';
import { contentPages, type PageStore } from './store.ts';

export interface PageReceiverOptions {
  /** Connections that one session may have, the one for control included. */
  readonly connections_max?: number;
}

type FinalListener = (name: SpaceName, range: PageRange) => void;

const CONNECTIONS_MAX = 33;
const DEMANDS_MAX = 65_536;
const DEMANDS_PRUNE = 4096;
const SEALED_RANGES_MAX = 2 ** 22;
const CACHE_FRAME_HASHES = 65_536;

interface Demand {
  readonly name: SpaceName;
  readonly range: PageRange;
  readonly urgent: boolean;
}

/**
 * The destination's end of the page path: writes what comes on any number of connections into the store, and asks for
 * pages that somebody waits for. A connection that is replaced by a newer one of the same index is deaf from that moment,
 * so nothing old can overwrite something new. What it knows is in the store: it may be opened again over the same one.
 */
export class PageReceiver {
  readonly #store: PageStore;
  readonly #connectionsMax: number;
  readonly #current = new Map<number, ReceivingConnection>();
  readonly #epochs = new Map<number, number>();
  readonly #names = new Map<number, SpaceName>();
  readonly #demands = new Map<string, Demand>();
  readonly #onFinal = new Set<FinalListener>();
  readonly #onAbsent = new Set<FinalListener>();
  readonly #onLink = new Set<(up: boolean) => void>();
  readonly #sealed = Promise.withResolvers<void>();
  #contents: Map<SpaceName, PageRange[]> | undefined;
  #sealedRanges = 0;
  #complete: boolean;
  #received_bytes = 0;
  #demanded = 0;
  #refused = 0;
  #closed = false;

  private constructor(store: PageStore, options: PageReceiverOptions) {
    this.#store = store;
    this.#connectionsMax = options.connections_max ?? CONNECTIONS_MAX;
    this.#complete = store.sealed;
    if (this.#complete) this.#sealed.resolve();
    // Nobody has to wait for it.
    this.#sealed.promise.catch(() => undefined);
  }

  static open(store: PageStore, options: PageReceiverOptions = {}): PageReceiver {
    return new PageReceiver(store, options);
  }

  /** Serves one connection of the sender; resolves when that stream has ended, for whatever reason. */
  async attach(index: number, stream: Duplex): Promise<void> {
    if (this.#closed || index < 0 || index >= this.#connectionsMax) {
      stream.destroy();
      return;
    }
    const connection = new ReceivingConnection(index, stream, (frame) => this.#handle(connection, frame));
    await connection.ended;
    if (connection.failure instanceof UmsError && connection.failure.code === 'UMS_E_NO_ROOM')
      this.#fail(connection.failure);
    if (this.#current.get(index) !== connection) return;
    this.#current.delete(index);
    if (index === 0) this.#tellLink(false);
  }

  /** Asks the source for pages. `urgent`: a process waits for them. Asked again after a break, until they are final. */
  demand(name: SpaceName, range: PageRange, urgent: boolean): void {
    if (this.#demands.size >= DEMANDS_PRUNE) this.#pruneDemands();
    if (this.#demands.size >= DEMANDS_MAX) throw pagesFailed('too many pages are waited for at once', 'destination');
    const demand = { name, range, urgent };
    this.#demands.set(`${name}/${range.first}/${range.count}`, demand);
    this.#demanded += 1;
    this.#sendDemand(demand);
  }

  /** Calls back with pages that became final. */
  onFinal(listener: FinalListener): () => void {
    this.#onFinal.add(listener);
    return () => this.#onFinal.delete(listener);
  }

  /** Calls back with pages that were demanded and that the source does not have. */
  onAbsent(listener: FinalListener): () => void {
    this.#onAbsent.add(listener);
    return () => this.#onAbsent.delete(listener);
  }

  onLink(listener: (up: boolean) => void): () => void {
    this.#onLink.add(listener);
    return () => this.#onLink.delete(listener);
  }

  /** Resolves when everything that must be final is; rejects when that can no longer happen. */
  sealed(): Promise<void> {
    return this.#sealed.promise;
  }

  status(): ReceiverStatus {
    return {
      pages: this.#store.pages,
      final_pages: this.#store.finalPages,
      received_bytes: this.#received_bytes,
      demands: this.#demanded,
      frames_refused: this.#refused,
      connections: this.#current.size,
      sealed_pages: this.#contents === undefined ? undefined : contentPages(this.#list()),
      complete: this.#complete,
    };
  }

  /** Ends every connection; the store stays open. */
  async close(): Promise<void> {
    this.#closed = true;
    const connections = [...this.#current.values()];
    for (const connection of connections) connection.destroy();
    await Promise.all(connections.map((connection) => connection.ended));
    if (!this.#complete) this.#sealed.reject(pagesFailed('the transfer was ended', 'destination'));
  }

  #handle(connection: ReceivingConnection, frame: Frame): void {
    if (frame.type === 'hello') {
      this.#hello(connection, frame);
      return;
    }
    // A connection that was replaced, or that never introduced itself, is not listened to.
    if (this.#current.get(connection.index) !== connection) throw pagesFailed('a frame came before its greeting');
    this.#received_bytes += frame.meta_bytes + frame.payload_bytes;
    this.#apply(connection, frame);
  }

  #apply(connection: ReceivingConnection, frame: Frame): void {
    switch (frame.type) {
      case 'space':
        this.#nameSpace(frame);
        return;
      case 'data':
        this.#data(connection, frame);
        return;
      case 'confirm':
        this.#reply(connection, frame.seq, applyConfirm(this.#store, this.#nameOf(frame), frame, this.#tellFinal));
        return;
      case 'unchanged':
        this.#unchanged(connection, frame);
        return;
      case 'forget':
        this.#store.forget(this.#nameOf(frame), decodeRanges(frame.meta));
        return;
      case 'seal':
        this.#seal(connection, frame);
        return;
      case 'missing':
        this.#absent(frame);
        return;
      case 'status':
        connection.send({ type: 'status', flags: Flag.reply, meta: Buffer.from(frame.meta) });
        return;
      case 'hello':
      case 'ack':
      case 'nak':
      case 'demand':
      case 'cache':
      case 'fail':
        throw pagesFailed(`a receiver takes no frame of kind ${frame.type}`);
    }
  }

  #hello(connection: ReceivingConnection, frame: Frame): void {
    const { session, epoch, index, wantsCache } = connection.greeting(frame);
    if (index !== connection.index) throw pagesFailed('a connection says that it is another one');
    if (this.#store.session === undefined) this.#store.bindSession(session);
    if (this.#store.session !== session) {
      connection.fail(pagesFailed('the destination holds pages of another migration', 'destination'));
      return;
    }
    if (epoch <= (this.#epochs.get(index) ?? 0)) {
      connection.destroy();
      return;
    }
    this.#epochs.set(index, epoch);
    // Handling is synchronous: once it is replaced, nothing of the older connection can come any more.
    this.#current.get(index)?.destroy();
    this.#current.set(index, connection);
    connection.send({ type: 'hello', flags: Flag.reply, meta: Buffer.from(frame.meta) });
    if (index !== 0) return;
    if (wantsCache) void this.#sendCache(connection);
    this.#pruneDemands();
    for (const demand of this.#demands.values()) this.#sendDemand(demand);
    this.#tellLink(true);
  }

  #nameSpace(frame: Frame): void {
    const name = spaceNameSchema.safeParse(frame.meta.toString('utf8'));
    if (!name.success || frame.space >= SPACES_MAX) throw pagesFailed('a set of pages has no proper name');
    const known = this.#names.get(frame.space);
    if (known !== undefined && known !== name.data) throw pagesFailed('a set of pages changed its name');
    this.#names.set(frame.space, name.data);
  }

  #nameOf(frame: Frame): SpaceName {
    const name = this.#names.get(frame.space);
    if (name === undefined) throw pagesFailed('pages came of a set that was never named');
    return name;
  }

  #data(connection: ReceivingConnection, frame: Frame): void {
    const name = this.#nameOf(frame);
    const final = this.#onFinal.size > 0 && (frame.flags & Flag.final) !== 0 ? this.#tellFinal : undefined;
    if (applyData(this.#store, name, this.#names, frame, final)) return;
    this.#refused += 1;
    connection.send({ type: 'nak', argument: frame.seq });
  }

  #unchanged(connection: ReceivingConnection, frame: Frame): void {
    const name = this.#nameOf(frame);
    const ranges = decodeRanges(frame.meta);
    const absent = this.#store.markFinal(name, ranges);
    this.#reply(connection, frame.seq, absent);
    if (this.#onFinal.size === 0) return;
    for (const range of this.#store.select(name, ranges, (state) => state === 'final')) this.#tellFinal(name, range);
  }

  #reply(connection: ReceivingConnection, seq: number, missing: readonly PageRange[]): void {
    for (const ranges of inFrames(missing)) {
      connection.send({ type: 'missing', argument: seq, meta: encodeRanges(ranges) });
    }
  }

  #seal(connection: ReceivingConnection, frame: Frame): void {
    if ((frame.flags & Flag.first) !== 0) {
      this.#contents = new Map();
      this.#sealedRanges = 0;
    }
    if (this.#contents === undefined) throw pagesFailed('the list of pages does not begin');
    const ranges = decodeRanges(frame.meta);
    this.#sealedRanges += ranges.length;
    if (this.#sealedRanges > SEALED_RANGES_MAX) throw pagesFailed('the list of pages is too long');
    if (ranges.length > 0) {
      const name = this.#nameOf(frame);
      const listed = this.#contents.get(name) ?? [];
      for (const range of ranges) listed.push(range);
      this.#contents.set(name, listed);
    }
    if ((frame.flags & Flag.last) === 0) return;
    const missing = this.#store.missing(this.#list());
    for (const { name, ranges: lacking } of missing) this.#replyMissing(connection, frame.seq, name, lacking);
    if (missing.length > 0 || this.#complete) return;
    this.#store.seal(this.#list());
    this.#complete = true;
    this.#demands.clear();
    this.#sealed.resolve();
  }

  #replyMissing(connection: ReceivingConnection, seq: number, name: SpaceName, lacking: readonly PageRange[]): void {
    for (const [space, known] of this.#names) {
      if (known !== name) continue;
      for (const ranges of inFrames(lacking)) {
        connection.send({ type: 'missing', argument: seq, space, meta: encodeRanges(ranges) });
      }
      return;
    }
  }

  #list(): SpaceContents[] {
    return [...(this.#contents ?? [])].map(([name, ranges]) => ({ name, ranges }));
  }

  #absent(frame: Frame): void {
    const name = this.#nameOf(frame);
    for (const range of decodeRanges(frame.meta)) {
      for (const listener of this.#onAbsent) listener(name, range);
    }
  }

  #sendDemand(demand: Demand): void {
    const meta = encodeDemand(demand.name, [demand.range]);
    this.#current.get(0)?.send({ type: 'demand', flags: demand.urgent ? Flag.urgent : 0, meta });
  }

  #pruneDemands(): void {
    for (const [key, { name, range }] of this.#demands) {
      if (this.#store.missing([{ name, ranges: [range] }]).length === 0) this.#demands.delete(key);
    }
  }

  async #sendCache(connection: ReceivingConnection): Promise<void> {
    const hashes = this.#store.cache?.hashes ?? new BigUint64Array(0);
    for (let at = 0; at === 0 || at < hashes.length; at += CACHE_FRAME_HASHES) {
      const part = hashes.subarray(at, at + CACHE_FRAME_HASHES);
      const payload = Buffer.from(part.buffer, part.byteOffset, part.byteLength);
      const flags = at + CACHE_FRAME_HASHES >= hashes.length ? Flag.last : 0;
      const digest = blake3Of(payload);
      const parts = { type: 'cache', flags, argument: at, payload_bytes: payload.length, digest } as const;
      if (!(await connection.sendWithPayload((seq) => encodeHead(parts, seq), payload))) return;
    }
  }

  readonly #tellFinal = (name: SpaceName, range: PageRange): void => {
    for (const listener of this.#onFinal) listener(name, range);
  };

  #tellLink(up: boolean): void {
    for (const listener of this.#onLink) listener(up);
  }

  #fail(error: UmsError): void {
    this.#closed = true;
    for (const connection of this.#current.values()) connection.fail(error);
    this.#sealed.reject(error);
  }
}
