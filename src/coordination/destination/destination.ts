import { mkdir, rm, statfs, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createZstdDecompress } from 'node:zlib';
import { z } from 'zod';
import type { Driver, RestoreRequest, Tree } from '#src/drivers/contract.ts';
import { toUmsError, UmsError } from '#src/telemetry/errors.ts';
import { receiveImages } from '#src/transfer/pages/images.ts';
import { receivePages } from '#src/transfer/pages/receiver.ts';
import { serveTrees } from '#src/transfer/tree/index.ts';
import { allOf } from '../all-of.ts';
import { bootMark } from '../boot.ts';
import { type SagaContext, specificationOf, timed, treesOf } from '../context.ts';
import { checkHealth } from '../health.ts';
import type { Row } from '../journal.ts';
import {
  type Answer,
  type Filling,
  type Received,
  receivedRequestSchema,
  type reserveRequestSchema,
  type restoreRequestSchema,
  LAYERS_LIMIT,
} from '../messages.ts';
import { dropPageCache } from '../page-caches.ts';
import { planOf } from '../plan.ts';
import { checkHere } from '../preflight.ts';
import type { DestinationState } from '../states.ts';
import { isDestinationState } from '../states.ts';
import { interrupted, lost, lostMemory, neverWhole, sourceLost, surrendered } from './failures.ts';
import type { Heard } from './lease.ts';
import { Memories } from './memories.ts';
import { OpenStreams } from './open-streams.ts';
import { Passes } from './passes.ts';
import { asNoRoom, emptyDirectory, hasPages, pageManifest, verifyStaging } from './staging.ts';

/** Upper limits for what one tree of a service may hold; a peer that sends more is cut off. */
const TREE_LIMITS = { bytes: 16 * 2 ** 40, entries: 5_000_000 } as const;
const RESTORE_TIMEOUT_MS = 600_000;
/** What a restore needs may still be on its way. */
const COMING: readonly DestinationState[] = ['reserved', 'receiving'];
/** This agent was restarted, and the stream of files ended with the last one. */
const NO_PASSES = new Passes();
NO_PASSES.end();
/** Nothing runs here yet. */
const UNCOMMITTED: readonly DestinationState[] = [
  'reserving',
  'reserved',
  'receiving',
  'received',
  'restoring',
  'restored',
];
/** Whether or not it runs here, nobody has relied on it yet. */
const UNSETTLED: readonly DestinationState[] = [...UNCOMMITTED, 'committing', 'active'];
/** In these states the source may connect the page path. */
const MEMORY_STATES: readonly DestinationState[] = [
  'reserving',
  'reserved',
  'receiving',
  'received',
  'restoring',
  'restored',
  'committing',
  'active',
  'settling',
];

/**
 * The destination's side of migrations. The source drives; every method answers with the state afterwards, may be
 * repeated, and is serialised per migration, so a repeated request waits for the first and gets the same answer.
 */
export class Destination {
  readonly #context: SagaContext;
  readonly #queues = new Map<string, Promise<unknown>>();
  /** Streams of memory pages that are being received, by migration. */
  readonly #pages = new Map<string, Promise<void>>();
  readonly #memories: Memories;
  /** CRIU's images that are being received, or were. */
  readonly #images = new Map<string, Promise<void>>();
  /** Streams of files, by migration: programs wait for what comes over them. */
  readonly #sessions = new Map<string, Duplex>();
  readonly #passes = new Map<string, Passes>();
  readonly #streams = new OpenStreams();

  constructor(context: SagaContext) {
    this.#context = context;
    this.#memories = new Memories(context);
  }

  #exclusive<T>(id: string, body: () => Promise<T>): Promise<T> {
    const previous = this.#queues.get(id) ?? Promise.resolve();
    const result = previous.then(body, body);
    const settled = result.then(
      () => undefined,
      () => undefined,
    );
    this.#queues.set(id, settled);
    void settled.then(() => {
      if (this.#queues.get(id) === settled) this.#queues.delete(id);
    });
    return result;
  }

  /** A row that exists, belongs to this role and to this peer. */
  #row(peer: string, id: string): Row {
    const row = this.#context.journal.find(id);
    if (row === undefined || row.role !== 'destination' || row.source !== peer) {
      throw new UmsError('UMS_E_MIGRATION_UNKNOWN', {
        message: `${this.#context.systemName} knows no migration ${id} from ${peer}.`,
        fault: 'source',
        state: 'Nothing was changed.',
        mend: 'See what it knows there with: ums migrations',
      });
    }
    this.#context.journal.touch(id);
    return row;
  }

  #state(id: string): DestinationState {
    const { state } = this.#context.journal.get(id);
    if (!isDestinationState(state)) throw new Error(`${id} is in state ${state}, which is no destination state`);
    return state;
  }

  #require(row: Row, allowed: readonly DestinationState[]): void {
    const state = this.#state(row.id);
    if (allowed.includes(state)) return;
    throw new UmsError('UMS_E_MIGRATION_STATE', {
      message: `${this.#context.systemName} cannot do that now: migration ${row.id} is ${state}.`,
      fault: 'source',
      state: 'Nothing was changed.',
      mend: `See how it came to that with: ums show ${row.id}`,
    });
  }

  async #move(id: string, from: DestinationState, to: DestinationState): Promise<void> {
    await this.#context.breakpoints.reach(this.#context.journal, id, 'destination', from, 'after');
    if (!this.#context.journal.transition(id, from, to)) throw new Error(`${id} left ${from} meanwhile`);
    await this.#context.breakpoints.reach(this.#context.journal, id, 'destination', to, 'before');
  }

  #driver(row: Row): Driver {
    return this.#context.driver(row.engine);
  }

  #answer(id: string, started_ms: number, resumed_after_ms = 0): Answer {
    return {
      state: this.#state(id),
      elapsed_ms: performance.now() - started_ms,
      resumed_after_ms,
      error: this.#context.journal.get(id).error,
    };
  }

  /** The agent goes down; what serves running services stays. */
  leave(): Promise<void> {
    return this.#memories.leave();
  }

  imagesDir(id: string): string {
    return join(this.#context.stagingRoot, id, 'images');
  }

  workDir(id: string): string {
    return join(this.#context.stagingRoot, id, 'work');
  }

  /** What says whether anybody comes back for it. */
  async heard(row: Row): Promise<Heard> {
    const { id } = row;
    const state = this.#state(id);
    // Nobody else has to know, and finding out may open what is there of its memory.
    const isWhole = state !== 'restored' || (await this.#memories.of(row))?.whole !== false;
    return { state, silence_ms: this.#context.journal.silence_ms(id), isReceiving: this.#streams.has(id), isWhole };
  }

  #receiving<T>(id: string, work: () => Promise<T>): Promise<T> {
    return this.#streams.during(id, work, () => this.#context.journal.touch(id));
  }

  /** Checks, records and makes the staging directory; where the image is here, the container follows at once. */
  reserve(
    peer: string,
    request: z.infer<typeof reserveRequestSchema>,
  ): Promise<{ needsImage: boolean; layers: string[] }> {
    return this.#exclusive(request.id, async () => {
      const { journal } = this.#context;
      const { specification } = request;
      const checked = await checkHere(this.#context, specification, request.fingerprint, request.sizes);
      const blocking = checked.findings.find((finding) => finding.severity === 'error');
      if (blocking !== undefined) throw checked.asError(blocking);
      if (journal.find(request.id) === undefined) {
        journal.insert({
          id: request.id,
          role: 'destination',
          state: 'reserving',
          serviceUid: request.serviceUid,
          service: specification.name,
          engine: specification.engine,
          engineId: '',
          handle: '',
          source: peer,
          destination: this.#context.systemName,
          options: request.options,
          specification: JSON.stringify(specification),
          data: { boot: await bootMark(), sizes: request.sizes, plan: request.plan },
        });
      }
      this.#require(this.#row(peer, request.id), ['reserving']);
      await mkdir(this.imagesDir(request.id), { recursive: true, mode: 0o700 });
      await mkdir(this.workDir(request.id), { recursive: true, mode: 0o700 });
      await this.#context.breakpoints.reach(journal, request.id, 'destination', 'reserving', 'before');
      if (!checked.needsImage) {
        // The source asks for it with its next request, after a round trip; if it fails it is tried again then, and told.
        this.create(peer, request.id).catch(() => undefined);
        return { needsImage: false, layers: [] };
      }
      const layers = await this.#driver(journal.get(request.id)).imageLayers();
      return { needsImage: true, layers: layers.slice(0, LAYERS_LIMIT) };
    });
  }

  async receiveImage(peer: string, id: string, body: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<void> {
    const row = this.#row(peer, id);
    this.#require(row, ['reserving']);
    const archive = createZstdDecompress();
    const received = pipeline(Readable.from(body, { objectMode: false }), archive, { signal });
    const imported = this.#driver(row).importImage(specificationOf(row), archive, signal);
    await this.#receiving(id, () => allOf([imported, received]));
  }

  create(peer: string, id: string): Promise<{ state: DestinationState; trees: string[] }> {
    return this.#exclusive(id, async () => {
      const row = this.#row(peer, id);
      this.#require(row, ['reserving', 'reserved']);
      if (this.#state(id) === 'reserving') {
        const specification = specificationOf(row);
        const driver = this.#driver(row);
        const created = (await driver.findCreated(specification, id)) ?? (await driver.create(specification, id));
        this.#context.journal.lock(row.engine, created.id, id);
        const trees = created.trees.map((tree) => ({ ...tree }));
        this.#context.journal.jot(id, { trees }, { handle: created.handle, engine_id: created.id });
        await this.#move(id, 'reserving', 'reserved');
      }
      return { state: this.#state(id), trees: this.#trees(id).map((tree) => tree.id) };
    });
  }

  #trees(id: string): Tree[] {
    return treesOf(this.#context.journal.get(id));
  }

  /** Refuses a stream of files while its sender still listens for a reason. */
  admitTrees(peer: string, id: string): void {
    this.#require(this.#row(peer, id), ['reserved', 'receiving']);
  }

  async receiveTrees(peer: string, id: string, stream: Duplex, signal: AbortSignal): Promise<void> {
    this.#sessions.get(id)?.destroy();
    this.#sessions.set(id, stream);
    const passes = new Passes();
    this.#passes.set(id, passes);
    stream.once('close', () => {
      passes.end();
      if (this.#sessions.get(id) === stream) this.#sessions.delete(id);
    });
    const options = {
      trees: new Map(this.#trees(id).map((tree) => [tree.id, tree])),
      admit: () => this.admitTrees(peer, id),
      limits: TREE_LIMITS,
      signal,
      onApplied: () => passes.applied(),
    };
    await this.#receiving(id, () => serveTrees(stream, options));
  }

  /** Refuses a connection of the page path while its sender still listens for a reason. */
  admitMemory(peer: string, id: string): void {
    this.#require(this.#row(peer, id), MEMORY_STATES);
  }

  /** One connection of the page path, until it ends. */
  async attachMemory(peer: string, id: string, index: number, stream: Duplex): Promise<void> {
    const memory = await this.#memories.of(this.#row(peer, id));
    await this.#receiving(id, async () => await memory?.attach(index, stream));
  }

  /** The freeze is near: everything that a restore needs and that does not need the images is done now. */
  prepare(peer: string, id: string, descriptors: string | undefined): Promise<Answer> {
    const started = performance.now();
    return this.#exclusive(id, async () => {
      const row = this.#row(peer, id);
      this.#require(row, ['reserved']);
      const { handle } = this.#context.journal.get(id);
      const memory = await this.#memories.of(row);
      await emptyDirectory(this.imagesDir(id));
      if (descriptors !== undefined) {
        await writeFile(join(this.imagesDir(id), 'descriptors.json'), descriptors, { mode: 0o600 });
      }
      await Promise.all([memory?.prepare(), this.#driver(row).prepareRestore(handle, this.#restoreRequest(row))]);
      return this.#answer(id, started);
    }).catch(asNoRoom);
  }

  #restoreRequest(row: Row): RestoreRequest {
    return {
      imagesDir: this.imagesDir(row.id),
      workDir: this.workDir(row.id),
      timeout_ms: RESTORE_TIMEOUT_MS,
      ...(planOf(row).path === 'pages' ? { lazy: true } : {}),
    };
  }

  /** Refuses a stream of memory while its sender still listens for a reason. */
  admitPages(peer: string, id: string): void {
    this.#require(this.#row(peer, id), ['reserved', 'receiving']);
  }

  async receivePages(peer: string, id: string, stream: Duplex): Promise<void> {
    await this.#beginReceiving(this.#row(peer, id));
    const received = receivePages(stream, this.imagesDir(id), this.workDir(id));
    this.#pages.set(id, received);
    await this.#receiving(id, () => received);
  }

  /** A dump starts from nothing. */
  #beginReceiving(row: Row): Promise<void> {
    return this.#exclusive(row.id, async () => {
      this.#require(row, ['reserved']);
      // Emptied, not replaced: a prepared restore has opened it already.
      await emptyDirectory(this.imagesDir(row.id));
      await this.#move(row.id, 'reserved', 'receiving');
    });
  }

  async receiveCriuImages(peer: string, id: string, body: AsyncIterable<Uint8Array>): Promise<void> {
    const received = this.#receiveImages(this.#row(peer, id), body).catch(asNoRoom);
    this.#images.set(id, received);
    // Whoever waits for it hears of a failure; until then it is nobody's.
    received.catch(() => undefined);
    await this.#receiving(id, () => received);
  }

  async #receiveImages(row: Row, body: AsyncIterable<Uint8Array>): Promise<void> {
    const { id } = row;
    this.#require(row, ['reserved', 'receiving']);
    // A small service has its memory among the images, and no stream of pages came before.
    if (this.#state(id) === 'reserved') await this.#beginReceiving(row);
    const room = await statfs(this.imagesDir(id));
    const manifest = await receiveImages(this.imagesDir(id), body, room.bavail * room.bsize);
    this.#context.journal.jot(id, { images: manifest });
    // The pager reads its plan while the source still asks whether everything has arrived.
    await (await this.#memories.of(row))?.serve();
  }

  /** Everything has been sent: is everything here? */
  received(peer: string, id: string, request: Received): Promise<Answer> {
    const started = performance.now();
    return this.#exclusive(id, async () => {
      const row = this.#row(peer, id);
      this.#require(row, ['receiving', 'received']);
      if (this.#state(id) === 'receiving') await this.#received(row, request);
      return this.#answer(id, started);
    });
  }

  async #received(row: Row, request: Received): Promise<void> {
    const { id } = row;
    const pages = this.#pages.get(id);
    // First what went wrong with the memory, if something did: the rest would only be its consequence.
    await pages;
    const { data } = this.#context.journal.get(id);
    const asImages = planOf(row).path === 'images';
    if (data['images'] === undefined || (asImages && pages === undefined && !hasPages(data['images']))) {
      throw new UmsError('UMS_E_IMAGE_CORRUPT', {
        message: `${this.#context.systemName} has not received ${data['images'] === undefined ? 'the images' : 'the memory'} of ${row.service}.`,
        fault: 'source',
        mend: 'Try again.',
      });
    }
    this.#pages.delete(id);
    this.#context.journal.jot(id, { expected: request, pages: pageManifest(this.imagesDir(id)) });
    await this.#move(id, 'receiving', 'received');
  }

  restore(peer: string, id: string, { received, passes }: z.infer<typeof restoreRequestSchema>): Promise<Answer> {
    const started = performance.now();
    return this.#exclusive(id, async () => {
      const row = this.#row(peer, id);
      // The images may still be on their way on a stream of their own, which the request has overtaken.
      if (received !== undefined) await timed(this.#context, id, 'images', this.#images.get(id) ?? Promise.resolve());
      if (passes !== undefined && COMING.includes(this.#state(id))) {
        await timed(this.#context, id, 'passes', (this.#passes.get(id) ?? NO_PASSES).wait(passes));
      }
      const early: readonly DestinationState[] = received === undefined ? [] : ['receiving'];
      this.#require(row, [...early, 'received', 'restoring', 'restored', 'aborting', 'aborted']);
      if (this.#state(id) === 'receiving' && received !== undefined) await this.#received(row, received);
      if (this.#state(id) === 'received') await this.#move(id, 'received', 'restoring');
      if (this.#state(id) === 'restoring') await this.#restore(row);
      return this.#answer(id, started);
    });
  }

  async #restore(row: Row): Promise<void> {
    try {
      const { data, handle } = this.#context.journal.get(row.id);
      await verifyStaging(this.imagesDir(row.id), data['images'], data['pages']);
      const memory = await this.#memories.of(row);
      const { id } = row;
      if (memory !== undefined) await timed(this.#context, id, 'serve', memory.serve());
      await timed(this.#context, id, 'restore', this.#driver(row).restore(handle, this.#restoreRequest(row)));
      if (memory !== undefined) await timed(this.#context, id, 'hold', memory.hold());
      await this.#move(row.id, 'restoring', 'restored');
    } catch (error) {
      await this.#goBack(row.id, 'restoring', toUmsError(error));
    }
  }

  commit(peer: string, id: string, only_whole: boolean): Promise<Answer> {
    const started = performance.now();
    return this.#exclusive(id, async () => {
      const row = this.#row(peer, id);
      this.#require(row, ['restored', 'committing', 'active', 'settling', 'done', 'aborting', 'aborted']);
      if (this.#state(id) === 'restored') {
        const memory = await this.#memories.of(row);
        const here = this.#context.systemName;
        if (memory?.lost !== undefined) await this.#goBack(id, 'restored', lostMemory(row, here, memory.lost));
        else if (only_whole && memory?.whole === false) await this.#goBack(id, 'restored', neverWhole(row, here));
        else await this.#move(id, 'restored', 'committing');
      }
      let resumed_after_ms = 0;
      if (this.#state(id) === 'committing') {
        resumed_after_ms = await this.#commit(row, started);
      } else if (this.#state(id) === 'aborting') {
        await this.#abort(id);
      }
      return this.#answer(id, started, resumed_after_ms);
    });
  }

  /** From here the service runs on this system, unless it proves unfit: then it is removed before anyone is told. */
  async #commit(row: Row, started_ms: number): Promise<number> {
    const { data, handle } = this.#context.journal.get(row.id);
    const expected = receivedRequestSchema.parse(data['expected']);
    let resumed_after_ms = 0;
    try {
      const driver = this.#driver(row);
      const memory = await this.#memories.of(row);
      await memory?.hold();
      await timed(this.#context, row.id, 'resume', driver.resume(handle));
      memory?.ran();
      resumed_after_ms = performance.now() - started_ms;
      await checkHealth(driver, handle, expected, row.options.healthTimeout_ms);
      await this.#move(row.id, 'committing', 'active');
    } catch (error) {
      await this.#goBack(row.id, 'committing', toUmsError(error));
    }
    return resumed_after_ms;
  }

  /**
   * The source gives up, or asks whether it may. A service that runs here stays: the answer is then `active`. Anything
   * earlier ends for good, so that a commit that arrives late finds nothing to run.
   */
  giveUp(peer: string, id: string): Promise<Answer> {
    const started = performance.now();
    return this.#exclusive(id, async () => {
      this.#row(peer, id);
      const state = this.#state(id);
      if (UNCOMMITTED.includes(state)) await this.#move(id, state, 'aborting');
      if (state === 'committing') {
        // Told to run it, and killed before the end of that was known: find out before answering.
        await this.recover(id);
      }
      if (this.#state(id) === 'aborting') await this.#abort(id);
      return this.#answer(id, started);
    });
  }

  settle(peer: string, id: string): Promise<Answer> {
    const started = performance.now();
    return this.#exclusive(id, async () => {
      const row = this.#row(peer, id);
      this.#require(row, ['active', 'settling', 'done', 'aborting', 'aborted']);
      const current = this.#state(id);
      if (current === 'active') {
        const { handle, engine_id } = this.#context.journal.get(id);
        const state = await this.#driver(row).state(handle);
        const paused = (await this.#memories.of(row))?.paused === true;
        if (state !== 'running' && !(paused && (state === 'frozen' || state === 'restored'))) {
          await this.#goBack(id, current, lost(row, this.#context.systemName));
        } else {
          await this.#driver(row).adopt(handle);
          this.#context.journal.adoptService(row.engine, engine_id, row.service_uid, handle);
          await this.#context.traffic.setRoute(row.service_uid, { kind: 'here' });
          await this.#move(id, 'active', 'settling');
        }
      } else if (current === 'aborting') {
        await this.#abort(id);
      }
      return this.#answer(id, started);
    });
  }

  /** How far the memory is that came after the commit. Not serialised: it waits, and must not keep others waiting. */
  async filled(peer: string, id: string, wait_ms: number): Promise<Filling> {
    const row = this.#row(peer, id);
    this.#require(row, ['settling', 'done', 'aborting', 'aborted']);
    const whole = { complete: true, lost: null, faults: 0, demands: 0 } as const;
    if (planOf(row).path === 'images' || row.data['filled'] === true) return whole;
    if (row.data['boot'] !== (await bootMark()) || this.#state(id) !== 'settling') {
      const error = row.error ?? lost(row, this.#context.systemName).toReport();
      return { complete: false, lost: error, faults: 0, demands: 0 };
    }
    return (await (await this.#memories.of(row))?.filling(wait_ms)) ?? whole;
  }

  /**
   * An operator chose the source's frozen copy. Possible only as long as this side has not said that it has everything: the
   * source still holds its copy then, whenever this arrives. With `thawed` the source's copy runs already: what is here
   * must not run beside it.
   */
  surrender(peer: string, id: string, thawed: boolean): Promise<Answer> {
    const started = performance.now();
    return this.#exclusive(id, async () => {
      const row = this.#row(peer, id);
      this.#require(row, [...(thawed ? UNSETTLED : []), 'settling', 'done', 'aborting', 'aborted']);
      const state = this.#state(id);
      const isPartial = state === 'settling' && planOf(row).path === 'pages' && row.data['filled'] !== true;
      if (isPartial || (thawed && (state === 'settling' || UNSETTLED.includes(state)))) {
        if (state === 'settling') await this.#context.traffic.setRoute(row.service_uid, { kind: 'peer', peer });
        await this.#goBack(id, state, surrendered(row));
      } else if (state === 'aborting') {
        await this.#abort(id);
      }
      return this.#answer(id, started);
    });
  }

  /**
   * The source's host went down and took what had not arrived with it. There is no other copy, so the service begins anew
   * here, from the files that it has written last.
   */
  beginAnew(peer: string, id: string): Promise<Answer> {
    const started = performance.now();
    return this.#exclusive(id, async () => {
      const row = this.#row(peer, id);
      this.#require(row, ['settling', 'done', 'aborting', 'aborted']);
      if (this.#state(id) === 'settling' && planOf(row).path === 'pages' && row.data['filled'] !== true) {
        const begin = () => this.#driver(row).restartFresh(row.handle);
        // When this host went down as well, nothing waits for memory here any more.
        await (row.data['boot'] === (await bootMark()) ? this.#memories.abandon(row, begin) : begin());
        this.#context.journal.merge(id, { filled: true, paused: false, boot: await bootMark() });
        this.#context.journal.update(id, { error: sourceLost(row, this.#context.systemName).toReport() });
      }
      return this.#answer(id, started);
    });
  }

  /** The source has deleted its copy. */
  finish(peer: string, id: string): Promise<Answer> {
    const started = performance.now();
    return this.#exclusive(id, async () => {
      const row = this.#row(peer, id);
      this.#require(row, ['settling', 'done']);
      if (this.#state(id) === 'settling') {
        const { handle, data } = this.#context.journal.get(id);
        const driver = this.#driver(row);
        if (data['boot'] !== (await bootMark()) && (await driver.state(handle)) === 'stopped') {
          // This host went down after the service was handed over: it comes back as after any reboot.
          await driver.startFresh(handle);
          this.#context.journal.update(id, { error: lost(row, this.#context.systemName).toReport() });
        }
        await driver.settle(handle);
        await this.#memories.end(row);
        await dropPageCache(this.#context, row.service_uid);
        this.#images.delete(id);
        this.#passes.delete(id);
        await rm(join(this.#context.stagingRoot, id), { recursive: true, force: true });
        await this.#move(id, 'settling', 'done');
      }
      return this.#answer(id, started);
    });
  }

  async #goBack(id: string, from: DestinationState, error: UmsError): Promise<void> {
    this.#context.log.warn({ migration: id, state: from, err: error }, 'migration fails here, going back');
    this.#context.journal.update(id, { error: error.toReport() });
    await this.#move(id, from, 'aborting');
    await this.#abort(id);
  }

  async #abort(id: string): Promise<void> {
    const row = this.#context.journal.get(id);
    const driver = this.#driver(row);
    this.#sessions.get(id)?.destroy();
    const handle = row.handle !== '' ? row.handle : (await driver.findCreated(specificationOf(row), id))?.handle;
    if (handle !== undefined) await driver.remove(handle, { volumes: true });
    await this.#memories.end(row);
    await rm(join(this.#context.stagingRoot, id), { recursive: true, force: true });
    this.#pages.delete(id);
    this.#images.delete(id);
    this.#passes.delete(id);
    await this.#move(id, 'aborting', 'aborted');
  }

  /**
   * After a start of the agent: finds out what had already happened. Only from states in which this side alone knows;
   * in the others it waits for the source, which asks.
   */
  async recover(id: string): Promise<void> {
    const row = this.#context.journal.get(id);
    const state = this.#state(id);
    const rebooted = row.data['boot'] !== (await bootMark());
    const engineState = row.handle === '' ? 'absent' : await this.#driver(row).state(row.handle);
    switch (state) {
      case 'reserving':
      case 'reserved':
      case 'receiving':
      case 'received':
        if (rebooted) await this.#goBack(id, state, lost(row, this.#context.systemName));
        return;
      case 'restoring':
        if (!rebooted && engineState === 'restored') await this.#move(id, 'restoring', 'restored');
        else await this.#goBack(id, state, interrupted(row, this.#context.systemName));
        return;
      case 'restored':
        if (rebooted || engineState !== 'restored') await this.#goBack(id, state, lost(row, this.#context.systemName));
        return;
      case 'committing':
        // A restart policy may have started it anew at boot: such a copy has nothing of the service's memory.
        if (!rebooted && (engineState === 'restored' || engineState === 'running'))
          await this.#commit(row, performance.now());
        else await this.#goBack(id, state, lost(row, this.#context.systemName));
        return;
      case 'active':
        if (rebooted || engineState !== 'running') await this.#goBack(id, state, lost(row, this.#context.systemName));
        return;
      case 'aborting':
        await this.#abort(id);
        return;
      case 'settling':
      case 'done':
      case 'aborted':
        return;
    }
  }
}
