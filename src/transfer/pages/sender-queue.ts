import { UmsError } from '#src/telemetry/errors.ts';
import { type BuiltFrame, FrameBuilder, Sent } from './builder.ts';
import { Compressor } from './compress.ts';
import { DedupeIndex } from './dedupe.ts';
import {
  CONTENT_BYTES,
  encodeRanges,
  type Frame,
  type FrameParts,
  HEAD_BYTES,
  decodeRanges,
  inFrames,
} from './frames.ts';
import { decodeDemand } from './messages.ts';
import {
  PAGE_BYTES,
  type PageRange,
  pagesFailed,
  type SenderStats,
  type SendReport,
  type SpaceName,
  normaliseRanges,
} from './model.ts';
import { LinkMeter, TokenBucket } from './pace.ts';
import { RangeCursor } from './ranges.ts';
import type { SenderOptions } from './sender.ts';
import { type LinkHost, type Outgoing, SenderLink } from './sender-link.ts';
import { Job, type Piece, Request, type SenderSpace } from './sender-work.ts';

/** What may be on the way, over all bulk connections; frames in it keep their buffer until they are acknowledged. */
const WINDOW_MAX_BYTES = 32 * 1024 * 1024;
const DEMANDS_MAX = 65_536;
/** A page that was refused so often will never arrive. */
const ATTEMPTS_MAX = 6;
const TICK_MS = 1000;
const PROGRESS_MS = 100;
const STALL_MS = 20_000;
/** Hashing a page, for duplicates. */
const HASH_S_PER_BYTE = 0.28e-9;
const HASH_ALWAYS_BYTES_S = 400e6;
const HASH_SAMPLE_FRAMES = 32;

/** What has been asked of a sender and what its connections are to do next. */
export class SenderQueue implements LinkHost {
  readonly session: string;
  readonly open: SenderOptions['open'];
  readonly reconnect_ms: number;
  readonly stall_ms: number;
  readonly signal: AbortSignal;
  readonly dedupe = new DedupeIndex();
  confirmed_bytes = 0;
  readonly #options: SenderOptions;
  readonly #space: (name: SpaceName) => SenderSpace;
  readonly #links: SenderLink[] = [];
  readonly #own: (Piece | Request)[][] = [];
  readonly #builder = new FrameBuilder();
  readonly #compressor: Compressor;
  readonly #bucket: TokenBucket;
  readonly #meter: LinkMeter;
  readonly #abort = new AbortController();
  readonly #cacheKnown = Promise.withResolvers<void>();
  readonly #jobs = new Set<Job>();
  readonly #requests = new Set<Request>();
  readonly #totals = new Job('final');
  #bulk: Piece[] = [];
  #asked: Request[] = [];
  #control: Request[] = [];
  #demands: Piece[] = [];
  #early: { name: SpaceName; ranges: PageRange[] }[] = [];
  #frozen = false;
  #underWay_bytes = 0;
  #demanded = 0;
  #resent = 0;
  #refused = 0;
  #hashless = 0;
  #duplicates = 0;
  #pingDue = true;
  #progress_at = 0;
  #up = false;
  #controlWasUp = false;
  #failure: UmsError | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: SenderOptions, space: (name: SpaceName) => SenderSpace) {
    this.#options = options;
    this.#space = space;
    this.session = options.session ?? '';
    this.open = options.open;
    this.reconnect_ms = options.reconnect_ms;
    this.stall_ms = options.stall_ms ?? STALL_MS;
    this.signal = this.#abort.signal;
    this.#compressor = new Compressor(options.compression);
    this.#bucket = new TokenBucket(options.rate_bytes_s);
    this.#meter = new LinkMeter(options.rate_bytes_s);
    for (let index = 0; index <= options.connections; index += 1) {
      this.#links.push(new SenderLink(index, this));
      this.#own.push([]);
    }
  }

  async start(): Promise<void> {
    const signal = this.#options.signal;
    const cancel = (): void => this.failed(cancelledBy(signal));
    if (signal?.aborted === true) throw cancelledBy(signal);
    signal?.addEventListener('abort', cancel, { once: true });
    this.signal.addEventListener('abort', () => signal?.removeEventListener('abort', cancel), { once: true });
    try {
      await Promise.all(this.#links.map((link) => link.start(link.index === 0)));
    } catch (error) {
      const reason = this.#failure ?? error;
      await this.close();
      throw reason;
    }
    this.#timer = setInterval(() => this.#tick(), TICK_MS);
    this.#timer.unref();
    await this.#cacheKnown.promise;
    if (this.#failure !== undefined) throw this.#failure;
  }

  async send(job: Job, space: SenderSpace, ranges: readonly PageRange[]): Promise<SendReport> {
    this.#requireWorking();
    const cursor = new RangeCursor(normaliseRanges(ranges));
    this.#jobs.add(job);
    job.opened();
    if (cursor.done) job.closed();
    else this.#bulk.push({ job, space, cursor, urgent: false, raw: false, attempts: 0 });
    this.#wakeAll();
    try {
      return await job.done;
    } finally {
      this.#jobs.delete(job);
    }
  }

  /** Asks over any bulk connection. */
  ask(space: SenderSpace, make: () => Omit<FrameParts, 'digest'> | undefined): Request {
    return this.#ask(this.#asked, space, make);
  }

  /** Asks over the control connection, where what is asked stays in order. */
  askControl(space: SenderSpace | undefined, make: () => Omit<FrameParts, 'digest'> | undefined): Request {
    return this.#ask(this.#control, space, make);
  }

  prefer(space: SenderSpace, ranges: readonly PageRange[]): void {
    const preferred: Piece[] = [];
    for (const piece of this.#bulk) {
      if (piece.space !== space || piece.job.mode !== 'final') continue;
      const taken = piece.cursor.takeOut(ranges);
      if (taken.length === 0) continue;
      piece.job.opened();
      preferred.push({ ...piece, cursor: new RangeCursor(taken) });
    }
    this.#bulk.unshift(...preferred);
  }

  /** What rounds have not begun to send they leave out. */
  cutRounds(): void {
    const live = this.#bulk.filter((piece) => piece.job.mode === 'live');
    this.#bulk = this.#bulk.filter((piece) => piece.job.mode !== 'live');
    for (const { job, space, cursor } of live) {
      space.leftOut = normaliseRanges([...space.leftOut, ...cursor.rest()]);
      job.closed();
    }
  }

  /** Demands may be answered from now on. */
  freeze(): void {
    if (this.#frozen) return;
    this.#frozen = true;
    for (const { name, ranges } of this.#early.splice(0)) this.#demand(name, ranges);
  }

  stats(): SenderStats {
    const totals = this.#totals;
    return {
      pages: totals.pages,
      zero_bytes: totals.zero_pages * PAGE_BYTES,
      reference_bytes: totals.reference_pages * PAGE_BYTES,
      data_bytes: totals.data_bytes,
      compressed_bytes: totals.compressed_bytes,
      wire_bytes: totals.wire_bytes,
      confirmed_bytes: this.confirmed_bytes,
      link_bytes_s: this.#meter.rate,
      rtt_ms: this.#meter.rtt_ms,
      compressibility: this.#compressor.ratio,
      demands: this.#demanded,
      reconnects: this.#links.reduce((sum, link) => sum + link.reconnects, 0),
      frames_resent: this.#resent,
      frames_refused: this.#refused,
    };
  }

  async close(): Promise<void> {
    const graceful = this.#failure === undefined;
    this.#end(new UmsError('UMS_E_CANCELLED', { message: 'The transfer of memory pages was ended', fault: 'user' }));
    await Promise.all(this.#links.map((link) => link.close(graceful)));
    if (!this.signal.aborted) this.#abort.abort();
  }

  failed(error: UmsError): void {
    if (this.#failure !== undefined) return;
    this.#end(error);
    this.#abort.abort();
    for (const link of this.#links) void link.close(false);
    this.linkChanged();
  }

  next(link: SenderLink): Outgoing | number | undefined {
    if (this.#failure !== undefined) return undefined;
    return link.index === 0 ? this.#nextUrgent(link) : this.#nextBulk(link);
  }

  received(link: SenderLink, frame: Frame): void {
    switch (frame.type) {
      case 'demand': {
        const { name, ranges } = decodeDemand(frame.meta);
        this.#demanded += 1;
        if (this.#frozen) this.#demand(name, ranges);
        else if (this.#early.length < DEMANDS_MAX) this.#early.push({ name, ranges });
        return;
      }
      case 'missing': {
        const request = link.pending(frame.argument);
        if (!(request instanceof Request)) throw pagesFailed('the destination answered what was not asked');
        request.lacks(frame.space, decodeRanges(frame.meta));
        return;
      }
      case 'status':
        if (frame.meta.length === 8) this.#meter.roundTrip(performance.now() - frame.meta.readDoubleLE(0));
        return;
      case 'cache':
        this.#takeCache(frame);
        return;
      case 'hello':
      case 'space':
      case 'data':
      case 'confirm':
      case 'unchanged':
      case 'forget':
      case 'seal':
      case 'ack':
      case 'nak':
      case 'fail':
        throw pagesFailed(`a sender takes no frame of kind ${frame.type}`);
    }
  }

  acknowledged(link: SenderLink, bytes: number): void {
    if (link.index !== 0) this.#meter.acknowledged(bytes);
    this.#wakeAll();
    const now = performance.now();
    if (this.#options.onProgress === undefined || now - this.#progress_at < PROGRESS_MS) return;
    this.#progress_at = now;
    this.#options.onProgress(this.stats());
  }

  waited(): void {
    this.#meter.waited();
  }

  linkChanged(): void {
    const controlUp = this.#links[0]?.up === true;
    // A list of hashes that broke off is not asked for again: it only saves work.
    if (this.#controlWasUp && !controlUp) this.#cacheKnown.resolve();
    this.#controlWasUp ||= controlUp;
    const up = this.#failure === undefined && this.#links.every((link) => link.up);
    if (up === this.#up) return;
    this.#up = up;
    this.#options.onLink?.(up);
  }

  #nextUrgent(link: SenderLink): Outgoing | undefined {
    if (this.#pingDue) {
      this.#pingDue = false;
      const meta = Buffer.alloc(8);
      meta.writeDoubleLE(performance.now());
      return { parts: { type: 'status', meta }, under: nothing };
    }
    const outgoing = this.#fromPieces(link, this.#demands) ?? this.#fromOwn(link);
    return outgoing ?? this.#fromRequests(link, this.#control);
  }

  #nextBulk(link: SenderLink): Outgoing | number | undefined {
    const own = this.#own[link.index] ?? [];
    if (own.length === 0 && this.#asked.length === 0 && this.#bulk.length === 0) return undefined;
    const frame_bytes = this.#frameBytes();
    if (this.#underWay_bytes >= this.#meter.windowBytes(WINDOW_MAX_BYTES, frame_bytes, this.#options.connections)) {
      this.#meter.waited();
      return undefined;
    }
    const wait_ms = this.#bucket.wait_ms();
    if (wait_ms > 0) {
      this.#meter.waited();
      return wait_ms;
    }
    return this.#fromOwn(link) ?? this.#fromRequests(link, this.#asked) ?? this.#fromPieces(link, this.#bulk);
  }

  #fromOwn(link: SenderLink): Outgoing | undefined {
    const own = this.#own[link.index] ?? [];
    for (let first = own[0]; first !== undefined; first = own[0]) {
      const declared = this.#declared(link, first.space);
      if (declared !== undefined) return declared;
      const outgoing = first instanceof Request ? this.#makeRequest(first) : this.#build(link, first);
      if (first instanceof Request || first.cursor.done) own.shift();
      if (outgoing !== undefined) return outgoing;
    }
    return undefined;
  }

  #fromRequests(link: SenderLink, queue: Request[]): Outgoing | undefined {
    for (let first = queue[0]; first !== undefined; first = queue[0]) {
      const declared = this.#declared(link, first.space);
      if (declared !== undefined) return declared;
      queue.shift();
      first.link = link.index;
      const outgoing = this.#makeRequest(first);
      if (outgoing !== undefined) return outgoing;
    }
    return undefined;
  }

  #fromPieces(link: SenderLink, queue: Piece[]): Outgoing | undefined {
    for (let first = queue[0]; first !== undefined; first = queue[0]) {
      const declared = this.#declared(link, first.space);
      if (declared !== undefined) return declared;
      const outgoing = this.#build(link, first);
      if (first.cursor.done) queue.shift();
      if (outgoing !== undefined) return outgoing;
    }
    return undefined;
  }

  /** Names a space on a connection before it is used there for the first time. */
  #declared(link: SenderLink, space: SenderSpace | undefined): Outgoing | undefined {
    if (space === undefined || link.declared.has(space.id)) return undefined;
    link.declared.add(space.id);
    return { parts: { type: 'space', space: space.id, meta: Buffer.from(space.name) }, under: nothing };
  }

  #makeRequest(request: Request): Outgoing | undefined {
    const parts = request.make();
    if (parts === undefined) {
      request.arrived();
      return undefined;
    }
    this.#countUnderWay(0);
    return { parts, under: request };
  }

  #build(link: SenderLink, piece: Piece): Outgoing | undefined {
    const { space, cursor, job } = piece;
    const reader = space.reader;
    const hashing = this.#hashing();
    const began = performance.now();
    const built =
      reader === undefined
        ? { frame: undefined, absent: drop(cursor) }
        : this.#builder.build(cursor, {
            space: space.id,
            reader,
            sent: job.mode === 'final' ? space.sent : undefined,
            final: job.mode === 'final',
            urgent: piece.urgent,
            raw: piece.raw,
            content_bytes: this.#frameBytes(),
            link_bytes_s: this.#meter.rate,
            dedupe: hashing ? this.dedupe : undefined,
            compressor: this.#compressor,
            cache: this.#options.cache,
          });
    this.#meter.busy(performance.now() - began);
    for (const { count } of built.absent) job.absent_pages += count;
    if (piece.urgent && built.absent.length > 0) this.#tellAbsent(space, built.absent);
    const outgoing = built.frame === undefined ? undefined : this.#outgoing(link, piece, built.frame, hashing);
    if (cursor.done) job.closed();
    return outgoing;
  }

  #outgoing(link: SenderLink, piece: Piece, frame: BuiltFrame, hashed: boolean): Outgoing {
    const { job, space } = piece;
    const bytes = HEAD_BYTES + (frame.parts.meta?.length ?? 0) + frame.payload.length;
    if (hashed && frame.pages > 0) this.#duplicates += 0.1 * (frame.reference_pages / frame.pages - this.#duplicates);
    job.opened();
    job.built(frame, bytes);
    this.#totals.built(frame, bytes);
    this.#bucket.spend(bytes);
    this.#countUnderWay(bytes);
    for (const { first, count } of frame.taken) {
      this.dedupe.unknown(space.id, first, count);
      if (job.mode === 'final') space.sent.fill(first, count, Sent.underWay);
    }
    const settle = (): void => {
      this.#underWay_bytes -= bytes;
    };
    const under = {
      bytes,
      arrived: (): void => {
        settle();
        this.#builder.pool.give(frame.buffer);
        this.#arrived(piece, frame);
        job.closed();
      },
      again: (refused: boolean): void => {
        settle();
        // A refused frame was read to its end; of a lost one the network may still hold the buffer.
        if (refused) this.#builder.pool.give(frame.buffer);
        this.#again(link, piece, frame, refused);
      },
    };
    return { parts: frame.parts, payload: frame.payload, under };
  }

  #arrived({ job, space }: Piece, frame: BuiltFrame): void {
    if (job.mode === 'final') {
      for (const { first, count } of frame.taken) space.sent.fill(first, count, Sent.held);
    }
    const { slots, hashes } = frame;
    if (slots === undefined || hashes === undefined) return;
    for (let slot = 0; slot < slots.length; slot += 1) {
      this.dedupe.held(space.id, slots[slot] ?? 0, hashes[slot * 2] ?? 0, hashes[slot * 2 + 1] ?? 0);
    }
  }

  /** Pages that did not arrive are read again and go over the same connection, so that nothing old can come after them. */
  #again(link: SenderLink, piece: Piece, frame: BuiltFrame, refused: boolean): void {
    const { job, space } = piece;
    this.#resent += 1;
    if (refused) this.#refused += 1;
    const attempts = piece.attempts + (refused ? 1 : 0);
    if (attempts >= ATTEMPTS_MAX) {
      this.failed(pagesFailed('the same pages were altered on the way again and again'));
      return;
    }
    if (job.mode === 'final') {
      for (const { first, count } of frame.taken) {
        if (space.sent.get(first) !== Sent.held) space.sent.fill(first, count, Sent.no);
      }
    }
    const cursor = new RangeCursor(frame.taken);
    this.#own[link.index]?.push({ job, space, cursor, urgent: piece.urgent, raw: refused || piece.raw, attempts });
  }

  #ask(queue: Request[], space: SenderSpace | undefined, make: () => Omit<FrameParts, 'digest'> | undefined): Request {
    this.#requireWorking();
    const request = new Request(space, make, () => this.#own[request.link]?.push(request));
    this.#requests.add(request);
    const forget = (): boolean => this.#requests.delete(request);
    request.answered.then(forget, forget);
    queue.push(request);
    this.#wakeAll();
    return request;
  }

  #demand(name: SpaceName, ranges: readonly PageRange[]): void {
    if (this.#demands.length >= DEMANDS_MAX) throw pagesFailed('the destination asks for too many pages at once');
    const job = new Job('final');
    job.opened();
    job.done.catch(() => undefined);
    this.#demands.push({
      job,
      space: this.#space(name),
      cursor: new RangeCursor(ranges),
      urgent: true,
      raw: false,
      attempts: 0,
    });
    this.#links[0]?.wake();
  }

  #tellAbsent(space: SenderSpace, absent: readonly PageRange[]): void {
    for (const list of inFrames(absent)) {
      this.askControl(space, () => ({ type: 'missing', space: space.id, meta: encodeRanges(list) }));
    }
  }

  #takeCache(frame: Frame): void {
    if (frame.payload.length % 8 !== 0) throw pagesFailed('a list of hashes is cut off');
    const hashes = new Uint32Array(frame.payload.length / 4);
    new Uint8Array(hashes.buffer).set(frame.payload);
    this.dedupe.addCache(frame.argument, hashes);
    if ((frame.flags & 8) !== 0) this.#cacheKnown.resolve();
  }

  #frameBytes(): number {
    return this.#meter.frameBytes(CONTENT_BYTES);
  }

  /** Whether looking for duplicates is worth its time: always on slow links, on fast ones where there are enough. */
  #hashing(): boolean {
    if (this.#options.dedupe === 'off') return false;
    const rate = this.#meter.rate;
    if (rate < HASH_ALWAYS_BYTES_S || this.dedupe.cachePages > 0) return true;
    if (this.#duplicates / rate > HASH_S_PER_BYTE) return true;
    this.#hashless += 1;
    return this.#hashless % HASH_SAMPLE_FRAMES === 0;
  }

  #countUnderWay(bytes: number): void {
    if (this.#underWay_bytes === 0) this.#meter.begin();
    this.#underWay_bytes += bytes;
  }

  #tick(): void {
    this.#pingDue = true;
    for (const link of this.#links) link.checkStall();
    this.#links[0]?.wake();
  }

  #wakeAll(): void {
    for (const link of this.#links) link.wake();
  }

  #requireWorking(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  #end(error: UmsError): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    clearInterval(this.#timer);
    this.#cacheKnown.resolve();
    for (const job of this.#jobs) job.failed(error);
    for (const request of this.#requests) request.failed(error);
  }
}

const nothing = {
  bytes: 0,
  arrived: (): void => undefined,
  again: (): void => undefined,
};

function drop(cursor: RangeCursor): PageRange[] {
  const rest = cursor.rest();
  while (!cursor.done) cursor.advance(cursor.count);
  return rest;
}

function cancelledBy(signal: AbortSignal | undefined): UmsError {
  const reason: unknown = signal?.reason;
  if (reason instanceof UmsError) return reason;
  return new UmsError('UMS_E_CANCELLED', { message: 'The transfer of memory pages was cancelled', fault: 'user' });
}
