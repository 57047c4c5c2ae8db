import { mkdir, rm, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { Readable } from 'node:stream';
import { z } from 'zod';
import type { Driver, Tree } from '#src/drivers/contract.ts';
import { toUmsError, UmsError } from '#src/telemetry/errors.ts';
import { receiveImages } from '#src/transfer/pages/images.ts';
import { receivePages } from '#src/transfer/pages/receiver.ts';
import { receiveTree } from '#src/transfer/tree/index.ts';
import { bootMark } from '../boot.ts';
import { type SagaContext, specificationOf, treesOf } from '../context.ts';
import { checkHealth } from '../health.ts';
import type { Row } from '../journal.ts';
import { type Answer, receivedRequestSchema, type reserveRequestSchema } from '../messages.ts';
import { checkHere } from '../preflight.ts';
import type { DestinationState } from '../states.ts';
import { DESTINATION_STATES } from '../states.ts';
import { hasPages, pageManifest, verifyStaging } from './staging.ts';

/** Upper limits for what one tree of a service may hold; a peer that sends more is cut off. */
const TREE_LIMITS = { bytes: 16 * 2 ** 40, entries: 5_000_000 } as const;
const RESTORE_TIMEOUT_MS = 600_000;

function isDestinationState(state: string): state is DestinationState {
  return DESTINATION_STATES.some((known) => known === state);
}

/**
 * The destination's side of migrations. The source drives; every method answers with the state afterwards, may be
 * repeated, and is serialised per migration, so a repeated request waits for the first and gets the same answer.
 */
export class Destination {
  readonly #context: SagaContext;
  readonly #queues = new Map<string, Promise<unknown>>();
  /** Streams of memory pages that are being received, by migration. */
  readonly #pages = new Map<string, Promise<void>>();

  constructor(context: SagaContext) {
    this.#context = context;
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

  imagesDir(id: string): string {
    return join(this.#context.stagingRoot, id, 'images');
  }

  workDir(id: string): string {
    return join(this.#context.stagingRoot, id, 'work');
  }

  /** Checks, records and makes the staging directory. */
  reserve(peer: string, request: z.infer<typeof reserveRequestSchema>): Promise<{ needsImage: boolean }> {
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
        });
        journal.merge(request.id, { boot: await bootMark(), sizes: request.sizes });
      }
      this.#require(this.#row(peer, request.id), ['reserving']);
      await mkdir(this.imagesDir(request.id), { recursive: true, mode: 0o700 });
      await mkdir(this.workDir(request.id), { recursive: true, mode: 0o700 });
      await this.#context.breakpoints.reach(journal, request.id, 'destination', 'reserving', 'before');
      return { needsImage: checked.needsImage };
    });
  }

  async receiveImage(peer: string, id: string, body: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<void> {
    const row = this.#row(peer, id);
    this.#require(row, ['reserving']);
    await this.#driver(row).importImage(specificationOf(row), Readable.from(body, { objectMode: false }), signal);
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
        this.#context.journal.update(id, { handle: created.handle, engine_id: created.id });
        this.#context.journal.merge(id, { trees: created.trees.map((tree) => ({ ...tree })) });
        await this.#move(id, 'reserving', 'reserved');
      }
      return { state: this.#state(id), trees: this.#trees(id).map((tree) => tree.id) };
    });
  }

  #trees(id: string): Tree[] {
    return treesOf(this.#context.journal.get(id));
  }

  async receiveTree(
    peer: string,
    header: { migration: string; tree: string; pass: number },
    body: AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<{ bytes: number; files: number }> {
    const row = this.#row(peer, header.migration);
    this.#require(row, ['reserved', 'receiving']);
    const tree = this.#trees(row.id).find((candidate) => candidate.id === header.tree);
    if (tree === undefined) {
      throw new UmsError('UMS_E_PEER_MESSAGE', {
        message: `The service has no tree ${JSON.stringify(header.tree)} at ${this.#context.systemName}.`,
        fault: 'source',
        mend: 'Run the same version of ums on both systems.',
      });
    }
    const result = await receiveTree(tree, body, { signal, limits: TREE_LIMITS });
    return { bytes: result.bytes, files: result.files };
  }

  /** Refuses a stream of memory while its sender still listens for a reason. */
  admitPages(peer: string, id: string): void {
    this.#require(this.#row(peer, id), ['reserved', 'receiving']);
  }

  async receivePages(peer: string, id: string, stream: Duplex): Promise<void> {
    await this.#beginReceiving(this.#row(peer, id));
    const received = receivePages(stream, this.imagesDir(id), this.workDir(id));
    this.#pages.set(id, received);
    await received;
  }

  /** A dump starts from nothing. */
  #beginReceiving(row: Row): Promise<void> {
    return this.#exclusive(row.id, async () => {
      this.#require(row, ['reserved']);
      await rm(this.imagesDir(row.id), { recursive: true, force: true });
      await mkdir(this.imagesDir(row.id), { recursive: true, mode: 0o700 });
      await this.#move(row.id, 'reserved', 'receiving');
    });
  }

  async receiveCriuImages(peer: string, id: string, body: AsyncIterable<Uint8Array>): Promise<void> {
    const row = this.#row(peer, id);
    this.#require(row, ['reserved', 'receiving']);
    // A small service has its memory among the images, and no stream of pages came before.
    if (this.#state(id) === 'reserved') await this.#beginReceiving(row);
    const room = await statfs(this.imagesDir(id));
    const manifest = await receiveImages(this.imagesDir(id), body, room.bavail * room.bsize);
    this.#context.journal.merge(id, { images: manifest });
  }

  /** Everything has been sent: is everything here? */
  received(peer: string, id: string, request: z.infer<typeof receivedRequestSchema>): Promise<Answer> {
    const started = performance.now();
    return this.#exclusive(id, async () => {
      const row = this.#row(peer, id);
      this.#require(row, ['receiving', 'received']);
      if (this.#state(id) === 'receiving') {
        const pages = this.#pages.get(id);
        // First what went wrong with the memory, if something did: the rest would only be its consequence.
        await pages;
        if (row.data['images'] === undefined || (pages === undefined && !hasPages(row.data['images']))) {
          throw new UmsError('UMS_E_IMAGE_CORRUPT', {
            message: `${this.#context.systemName} has not received ${row.data['images'] === undefined ? 'the images' : 'the memory'} of ${row.service}.`,
            fault: 'source',
            mend: 'Try again.',
          });
        }
        this.#pages.delete(id);
        this.#context.journal.merge(id, { expected: request, pages: await pageManifest(this.imagesDir(id)) });
        await this.#move(id, 'receiving', 'received');
      }
      return this.#answer(id, started);
    });
  }

  restore(peer: string, id: string): Promise<Answer> {
    const started = performance.now();
    return this.#exclusive(id, async () => {
      const row = this.#row(peer, id);
      this.#require(row, ['received', 'restoring', 'restored', 'aborting', 'aborted']);
      if (this.#state(id) === 'received') await this.#move(id, 'received', 'restoring');
      if (this.#state(id) === 'restoring') await this.#restore(row);
      return this.#answer(id, started);
    });
  }

  async #restore(row: Row): Promise<void> {
    try {
      const { data, handle } = this.#context.journal.get(row.id);
      await verifyStaging(this.imagesDir(row.id), data['images'], data['pages']);
      await this.#driver(row).restore(handle, {
        imagesDir: this.imagesDir(row.id),
        workDir: this.workDir(row.id),
        timeout_ms: RESTORE_TIMEOUT_MS,
      });
      await this.#move(row.id, 'restoring', 'restored');
    } catch (error) {
      await this.#goBack(row.id, 'restoring', toUmsError(error));
    }
  }

  commit(peer: string, id: string): Promise<Answer> {
    const started = performance.now();
    return this.#exclusive(id, async () => {
      const row = this.#row(peer, id);
      this.#require(row, ['restored', 'committing', 'active', 'settling', 'done', 'aborting', 'aborted']);
      if (this.#state(id) === 'restored') await this.#move(id, 'restored', 'committing');
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
      await driver.resume(handle);
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
      const back: readonly DestinationState[] = [
        'reserving',
        'reserved',
        'receiving',
        'received',
        'restoring',
        'restored',
      ];
      if (back.includes(state)) await this.#move(id, state, 'aborting');
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
      const state = this.#state(id);
      if (state === 'active') {
        const { handle, engine_id } = this.#context.journal.get(id);
        if ((await this.#driver(row).state(handle)) !== 'running') {
          await this.#goBack(id, state, lost(row, this.#context.systemName));
        } else {
          this.#context.journal.adoptService(row.engine, engine_id, row.service_uid, handle);
          await this.#context.traffic.setRoute(row.service_uid, { kind: 'here' });
          await this.#move(id, 'active', 'settling');
        }
      } else if (state === 'aborting') {
        await this.#abort(id);
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
        if ((await driver.state(handle)) === 'stopped' && data['boot'] !== (await bootMark())) {
          // This host went down after the service was handed over: it comes back as after any reboot.
          await driver.startFresh(handle);
          this.#context.journal.update(id, { error: lost(row, this.#context.systemName).toReport() });
        }
        await driver.settle(handle);
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
    const handle = row.handle !== '' ? row.handle : (await driver.findCreated(specificationOf(row), id))?.handle;
    if (handle !== undefined) await driver.remove(handle, { volumes: true });
    await rm(join(this.#context.stagingRoot, id), { recursive: true, force: true });
    this.#pages.delete(id);
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

function lost(row: Row, here: string): UmsError {
  return new UmsError('UMS_E_HOST_LOST', {
    message: `${here} went down or lost ${row.service} while it was arriving.`,
    fault: 'destination',
    mend: `Look at ${here} before you try again.`,
  });
}

function interrupted(row: Row, here: string): UmsError {
  return new UmsError('UMS_E_RESTORE', {
    message: `The agent on ${here} was restarted while it restored ${row.service}.`,
    fault: 'destination',
    mend: 'Try again.',
  });
}
