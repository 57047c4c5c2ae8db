import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { type LazyPager, reconnectPager, startPager } from '#src/checkpoint/lazy/index.ts';
import type { Driver } from '#src/drivers/contract.ts';
import { toUmsError, UmsError } from '#src/telemetry/errors.ts';
import type { PageCache } from '#src/transfer/pages/cache.ts';
import { PageReceiver } from '#src/transfer/pages/page-receiver.ts';
import { PageStore } from '#src/transfer/pages/store.ts';
import type { SagaContext } from '../context.ts';
import type { Row } from '../journal.ts';
import type { Filling } from '../messages.ts';
import { dropPageCache, openPageCache } from '../page-caches.ts';

/** A link that is down for longer than this pauses the service: part of it would wait for memory and part would not. */
const PAUSE_AFTER_MS = 500;
/** How long it is waited for a service to stand still entirely. */
const STAND_STILL_MS = 500;

/**
 * The destination's side of a service's memory on its way: a store in memory that the source fills, and a pager, a
 * process of its own, that fills the restored processes from it. The pager survives this agent; the store is its
 * and the receiver's common ground, so an agent that was restarted goes on where the last one was killed.
 */
export class ArrivingMemory {
  readonly #context: SagaContext;
  readonly #row: Row;
  readonly #receiver: PageReceiver;
  readonly #store: PageStore;
  readonly #cache: PageCache | undefined;
  #pager: LazyPager | undefined;
  #serving = false;
  #held = false;
  #running = false;
  #paused = false;
  #linkTimer: NodeJS.Timeout | undefined;
  #lost: UmsError | undefined;
  #complete = false;
  #watching: Promise<void> | undefined;
  #turn: Promise<void> = Promise.resolve();
  #emptied: Promise<void> = Promise.resolve();
  readonly #ended = new AbortController();

  private constructor(
    context: SagaContext,
    row: Row,
    receiver: PageReceiver,
    store: PageStore,
    cache: PageCache | undefined,
  ) {
    this.#store = store;
    this.#cache = cache;
    this.#context = context;
    this.#row = row;
    this.#receiver = receiver;
    this.#running = row.state === 'active' || row.state === 'settling';
    this.#paused = row.data['paused'] === true;
  }

  /** Makes what is needed, or finds it again after a restart of the agent. */
  static async open(context: SagaContext, row: Row): Promise<ArrivingMemory> {
    const directory = join(context.stagingRoot, row.id);
    await mkdir(join(directory, 'pager'), { recursive: true, mode: 0o700 });
    const cache = await openPageCache(context, row.service_uid);
    const store = await PageStore.open(join(directory, 'pages'), cache === undefined ? {} : { cache });
    const receiver = PageReceiver.open(store, {});
    const arriving = new ArrivingMemory(context, row, receiver, store, cache);
    const pager = await reconnectPager(join(directory, 'pager'));
    if (pager !== undefined) await arriving.#adopt(pager);
    receiver.onLink((up) => arriving.#onLink(up));
    receiver.onAbsent((name, range) => arriving.#lose(absent(row, name, range.first)));
    return arriving;
  }

  /** Carries one connection of the source until it ends. */
  attach(index: number, stream: Duplex): Promise<void> {
    return this.#receiver.attach(index, stream);
  }

  /** Before the freeze: the pager is started, so that it need not be while the service is away. */
  async prepare(): Promise<void> {
    if (this.#pager !== undefined) return;
    const directory = join(this.#context.stagingRoot, this.#row.id);
    const pager = await startPager({
      dir: join(directory, 'pager'),
      imagesDir: join(directory, 'images'),
      workDir: join(directory, 'work'),
      storeDir: join(directory, 'pages'),
    });
    await this.#adopt(pager);
  }

  async #adopt(pager: LazyPager): Promise<void> {
    this.#pager = pager;
    pager.onDemand((name, range, urgent) => this.#receiver.demand(name, range, urgent));
    this.#receiver.onFinal((name, range) => pager.final(name, range));
    if (this.#running) pager.hurry();
    const { state } = await pager.status();
    this.#serving = state !== 'waiting';
    if (this.#serving) this.#watch(pager);
  }

  /** CRIU's images are here: the pager reads from them what the processes will lack. Idempotent. */
  async serve(): Promise<void> {
    await this.prepare();
    if (this.#serving) return;
    const pager = this.#require();
    await pager.serve();
    this.#serving = true;
    this.#watch(pager);
  }

  /**
   * After the restore and before the first instruction: from here a pager that dies can no longer turn missing memory into
   * zeroes. Idempotent.
   */
  async hold(): Promise<void> {
    if (this.#held) return;
    await this.#require().hold();
    this.#held = true;
  }

  /** The service runs: from here on a broken link pauses it. */
  ran(): void {
    this.#running = true;
    this.#pager?.hurry();
  }

  /** Everything is here, and the source has said so. */
  get whole(): boolean {
    return this.#complete || this.#receiver.status().complete;
  }

  /** Why memory can no longer reach the processes, if that is so. */
  get lost(): UmsError | undefined {
    return this.#lost;
  }

  /** Stopped by a broken link, not by anybody who wanted it. */
  get paused(): boolean {
    return this.#paused;
  }

  #watch(pager: LazyPager): void {
    this.#watching ??= pager.finished(this.#ended.signal).then(
      () => {
        this.#complete = true;
        this.#stopWaitingForLink();
        // The last page may have come before anybody noticed that the link is back.
        this.#inTurn(() => this.#unpause());
        // Written down at once: from here on the loss of this host is like any host's, and the source's copy is stale.
        this.#context.journal.merge(this.#row.id, { filled: true });
        // While the source removes its copy; nobody waits for it before this is closed.
        const emptied = Promise.all([this.#store.empty(), dropPageCache(this.#context, this.#row.service_uid)]);
        this.#emptied = emptied.then(
          () => undefined,
          (error: unknown) => {
            const migration = this.#row.id;
            this.#context.log.warn({ migration, err: toUmsError(error) }, 'pages that nobody needs are kept');
          },
        );
      },
      (error: unknown) => {
        if (!this.#ended.signal.aborted) this.#lose(toUmsError(error));
      },
    );
  }

  /** Memory can no longer reach the processes: they must not run on without it. */
  #lose(cause: UmsError): void {
    this.#lost = cause;
    this.#context.log.error(
      { migration: this.#row.id, err: this.#lostHere(cause) },
      'the service is frozen, its memory is incomplete',
    );
    if (this.#running) this.#inTurn(() => this.#standStill());
  }

  /** As it is told when the service runs here. */
  #lostHere(cause: UmsError): UmsError {
    return new UmsError('UMS_E_MEMORY_LOST', {
      message: `Memory of ${this.#row.service} can no longer reach its processes on ${this.#context.systemName}: ${cause.message}`,
      fault: 'destination',
      state: `It is frozen on ${this.#context.systemName} as far as it got, and frozen on ${this.#row.source} as it was when it left.`,
      mend: `To go back to what it was when it left ${this.#row.source}: ums recover ${this.#row.id} --thaw-source there.`,
      ...(cause.detail === undefined ? {} : { detail: cause.detail }),
    });
  }

  #onLink(up: boolean): void {
    if (this.#complete || this.#lost !== undefined) return;
    if (!up) {
      this.#linkTimer ??= setTimeout(() => this.#inTurn(() => this.#pause()), PAUSE_AFTER_MS).unref();
      return;
    }
    this.#stopWaitingForLink();
    this.#inTurn(() => this.#unpause());
  }

  /** One after the other, because a link may go and come faster than a service can be frozen and thawed. */
  #inTurn(work: () => Promise<void>): void {
    this.#turn = this.#turn.then(work).catch((error: unknown) => {
      this.#context.log.error(
        { migration: this.#row.id, err: toUmsError(error) },
        'a service could not be paused or go on',
      );
    });
  }

  #stopWaitingForLink(): void {
    clearTimeout(this.#linkTimer);
    this.#linkTimer = undefined;
  }

  async #pause(): Promise<void> {
    if (!this.#running || this.#complete || this.#receiver.status().complete) return;
    // Known before it is done: an agent that is killed in between must let the service go on all the same.
    this.#remember(true);
    await this.#standStill();
    this.#note(`The link to ${this.#row.source} is down while memory is still there: the service is paused.`);
  }

  async #unpause(): Promise<void> {
    if (!this.#paused || this.#lost !== undefined) return;
    const state = await this.#driver().state(this.#handle());
    // Until it has settled, a service that stands still is to its driver one that is restored and has not run yet.
    if (state === 'restored') await this.#driver().resume(this.#handle());
    if (state === 'frozen') await this.#driver().thaw(this.#handle());
    this.#remember(false);
    this.#note('Nothing keeps memory from arriving any more: the service goes on.');
  }

  /** Threads that wait for memory within the kernel stand still as they are, and freeze only when they have got it. */
  async #standStill(): Promise<void> {
    if ((await this.#driver().state(this.#handle())) !== 'running') return;
    const frozen = this.#driver()
      .freeze(this.#handle())
      .catch(() => undefined);
    await Promise.race([frozen, sleep(STAND_STILL_MS)]);
  }

  #remember(paused: boolean): void {
    this.#paused = paused;
    this.#context.journal.merge(this.#row.id, { paused });
  }

  #note(text: string): void {
    this.#context.journal.emit(this.#row.id, { event: 'note', text });
  }

  #driver(): Driver {
    return this.#context.driver(this.#row.engine);
  }

  #handle(): string {
    return this.#context.journal.get(this.#row.id).handle;
  }

  /** How far it is; waits up to `wait_ms` for the end. */
  async filling(wait_ms: number): Promise<Filling> {
    const waited = AbortSignal.timeout(wait_ms);
    if (!this.#complete && this.#lost === undefined && this.#watching !== undefined) {
      const elapsed = new Promise<void>((resolve) => waited.addEventListener('abort', () => resolve(), { once: true }));
      await Promise.race([this.#watching, elapsed]);
    }
    const { faults } = (await this.#pager?.status()) ?? { faults: 0 };
    return {
      complete: this.#complete,
      lost: this.#lost === undefined ? null : this.#lostHere(this.#lost).toReport(),
      faults,
      demands: this.#receiver.status().demands,
    };
  }

  /** Ends everything; with it goes the pager, so the processes must be gone or have all of their memory. */
  async close(): Promise<void> {
    await this.#letGo('the memory need not arrive any more');
    await this.#pager?.stop();
  }

  /**
   * What is missing will never come. `end` ends the processes before the pager goes, without which they would take what is
   * missing for zeroes.
   */
  async abandon(end: () => Promise<void>): Promise<void> {
    await this.#letGo('the memory cannot arrive any more');
    await this.#turn;
    await end();
    await this.#pager?.stop();
  }

  /** The agent goes down: its connections end, the pager goes on. */
  leave(): Promise<void> {
    return this.#letGo('the agent stops');
  }

  async #letGo(why: string): Promise<void> {
    this.#ended.abort(new Error(why));
    this.#stopWaitingForLink();
    await this.#receiver.close();
    await this.#emptied;
    // An open file keeps its memory although it has no name any more.
    this.#store.close();
    this.#cache?.close();
  }

  #require(): LazyPager {
    if (this.#pager !== undefined) return this.#pager;
    throw new UmsError('UMS_E_RESTORE', {
      message: `The pager of ${this.#row.service} on ${this.#context.systemName} is gone.`,
      fault: 'destination',
      mend: 'Try again; if it happens again, look at the agent’s log there.',
    });
  }
}

function absent(row: Row, name: string, page: number): UmsError {
  return new UmsError('UMS_E_MEMORY_LOST', {
    message: `page ${page.toString(16)} of ${name} is not there any more at ${row.source}`,
    fault: 'source',
  });
}
