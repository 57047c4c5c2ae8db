import type { Duplex } from 'node:stream';
import { connectHere, connectPeer } from './connect.ts';
import {
  type Limits,
  type LocalAddress,
  type OpenPeerStream,
  Refusal,
  type Route,
  type Target,
  toRefusal,
} from './contract.ts';
import { pause, reset } from './streams.ts';

/** What one connection or request wants of the gate. Times are those of performance.now(). */
export interface Ask {
  port: number;
  /** When it must not wait any longer. */
  deadline: number;
  /** How often it may still be passed on to another system. */
  hops: number;
  /** Aborted when the client goes away. */
  gone: AbortSignal;
  /** Milliseconds that the far side's hold lets the stream come to its own end. */
  drain_ms?: number;
  /** The system it came from, when it did not come from a client. */
  cameFrom?: string;
}

/** A stream to the service that the gate knows about, so that a hold can bring it to its end. */
export class Lease {
  readonly stream: Duplex;
  /** The gate's epoch when it was opened; a later one means that the stream may lead to the wrong place. */
  readonly epoch: number;
  /** Brings the stream to its end; afterwards no byte can reach the service through it. Its user replaces this. */
  drain: () => Promise<void>;

  constructor(stream: Duplex, epoch: number) {
    this.stream = stream;
    this.epoch = epoch;
    this.drain = async () => reset(stream);
  }
}

interface Waiter {
  admit: () => void;
  refuse: (reason: Refusal) => void;
}

export interface GateParts {
  serviceUid: string;
  route: Route;
  openPeerStream: OpenPeerStream;
  localAddress: LocalAddress;
  limits: Limits;
}

const ADDRESS_LIFE_MS = 1000;
const MAX_TRIES = 10_000;
const MAX_PAUSE_MS = 200;

/** The one place through which every connection to one service goes, whichever Frontman or peer it came from. */
export class Gate {
  readonly #parts: GateParts;
  #target: Target;
  #holder: string | null;
  #epoch = 0;
  /** When the gate was last opened or pointed elsewhere; a service is given some time to listen after that. */
  #turnedAt = Number.NEGATIVE_INFINITY;
  #opening = 0;
  #closed: Refusal | undefined;
  #drained: Promise<void> = Promise.resolve();
  #address: { value: Promise<string | undefined>; until: number } | undefined;
  readonly #waiting = new Set<Waiter>();
  readonly #attempts = new Set<AbortController>();
  readonly #leases = new Set<Lease>();

  constructor(parts: GateParts) {
    this.#parts = parts;
    this.#target = parts.route.target;
    this.#holder = parts.route.holder;
  }

  get route(): Route {
    return { target: this.#target, state: this.#holder === null ? 'open' : 'holding', holder: this.#holder };
  }

  get epoch(): number {
    return this.#epoch;
  }

  get waiting(): number {
    return this.#waiting.size;
  }

  /** Lets nothing pass any more; resolves when every stream to the service has been brought to its end. */
  hold(holder: string): Promise<void> {
    if (this.#holder === holder) return this.#drained;
    this.#holder = holder;
    this.#turn();
    const leases = [...this.#leases];
    this.#drained = Promise.all(leases.map((lease) => lease.drain())).then(() => {
      for (const lease of leases) reset(lease.stream);
    });
    return this.#drained;
  }

  release(target: Target): void {
    const stays = this.#holder === null && sameTarget(this.#target, target);
    this.#holder = null;
    this.#target = target;
    if (stays) return;
    this.#turn();
    this.#turnedAt = performance.now();
    this.#pump();
  }

  setTarget(target: Target): void {
    if (sameTarget(this.#target, target)) return;
    this.#target = target;
    this.#turn();
    this.#turnedAt = performance.now();
  }

  /** Refuses all that wait and cuts all that pass. */
  close(): void {
    const reason = new Refusal('closed', 'the Frontman is closed');
    this.#closed = reason;
    for (const waiter of this.#waiting) waiter.refuse(reason);
    for (const attempt of this.#attempts) attempt.abort(reason);
    for (const lease of this.#leases) reset(lease.stream);
  }

  /**
   * Waits for the gate and opens a stream to the service, wherever it is by then. Throws a Refusal. `use` is called in
   * the same tick in which the gate takes note of the stream: a hold comes either before the stream or finds it in use.
   */
  async open<T>(ask: Ask, use: (lease: Lease) => T): Promise<T> {
    let delay_ms = 5;
    for (let tries = 1; ; tries += 1) {
      await this.#enter(ask);
      let failure: Refusal;
      try {
        return await this.#attempt(ask, use);
      } catch (thrown) {
        failure = toRefusal(thrown);
        if (tries >= MAX_TRIES || !this.#mayTryAgain(failure, ask)) throw failure;
      } finally {
        this.#opening -= 1;
        this.#pump();
      }
      if (failure.kind === 'moved') continue;
      await pause(delay_ms, ask.gone);
      delay_ms = Math.min(delay_ms * 2, MAX_PAUSE_MS);
    }
  }

  /** From now on what was being opened leads to the wrong place, or must not be opened at all. */
  #turn(): void {
    this.#epoch += 1;
    this.#address = undefined;
    const reason = new Refusal('moved', 'the route changed');
    for (const attempt of this.#attempts) attempt.abort(reason);
  }

  #enter(ask: Ask): Promise<void> {
    if (ask.gone.aborted) return Promise.reject(goneRefusal());
    if (this.#closed !== undefined) return Promise.reject(this.#closed);
    if (this.#holder === null && this.#opening < this.#parts.limits.maxOpening && this.#waiting.size === 0) {
      this.#opening += 1;
      return Promise.resolve();
    }
    if (this.#waiting.size >= this.#parts.limits.maxWaiting) {
      return Promise.reject(new Refusal('full', 'too many connections wait for the service'));
    }
    // An open gate only makes one wait for its turn, which is not what the hold limit is about.
    const least_ms = this.#holder === null ? this.#parts.limits.connectTimeout_ms : 0;
    const wait_ms = Math.max(ask.deadline - performance.now(), least_ms);
    return new Promise((resolve, reject) => {
      const leave = (): void => {
        clearTimeout(timer);
        ask.gone.removeEventListener('abort', onGone);
        this.#waiting.delete(waiter);
      };
      const waiter: Waiter = {
        admit: () => {
          leave();
          this.#opening += 1;
          resolve();
        },
        refuse: (reason) => {
          leave();
          reject(reason);
        },
      };
      const onGone = (): void => waiter.refuse(goneRefusal());
      const onTime = (): void => waiter.refuse(new Refusal('limit', 'the service did not come back in time'));
      const timer = setTimeout(onTime, wait_ms);
      ask.gone.addEventListener('abort', onGone);
      this.#waiting.add(waiter);
    });
  }

  #pump(): void {
    for (const waiter of this.#waiting) {
      if (this.#holder !== null || this.#opening >= this.#parts.limits.maxOpening) return;
      waiter.admit();
    }
  }

  async #attempt<T>(ask: Ask, use: (lease: Lease) => T): Promise<T> {
    const attempt = new AbortController();
    const onGone = (): void => attempt.abort(goneRefusal());
    // A hold may have come between the admission and this line.
    if (this.#holder !== null) throw new Refusal('moved', 'the route changed');
    this.#attempts.add(attempt);
    ask.gone.addEventListener('abort', onGone);
    try {
      const stream = await this.#connect(ask, attempt.signal);
      if (attempt.signal.aborted) {
        stream.on('error', () => stream.destroy());
        reset(stream);
        throw toRefusal(attempt.signal.reason);
      }
      return use(this.#lease(stream));
    } catch (thrown) {
      throw attempt.signal.aborted ? toRefusal(attempt.signal.reason) : thrown;
    } finally {
      ask.gone.removeEventListener('abort', onGone);
      this.#attempts.delete(attempt);
    }
  }

  async #connect(ask: Ask, signal: AbortSignal): Promise<Duplex> {
    const { limits, serviceUid, openPeerStream } = this.#parts;
    if (this.#target.kind === 'here') {
      const address = await this.#localAddress();
      if (address === undefined) throw new Refusal('absent', 'the service has no address on this system');
      if (signal.aborted) throw toRefusal(signal.reason);
      try {
        return await connectHere(address, ask.port, signal, limits.connectTimeout_ms);
      } catch (thrown) {
        this.#address = undefined;
        throw thrown;
      }
    }
    const { peer } = this.#target;
    if (peer === ask.cameFrom) throw new Refusal('returned', `the service is on ${peer}, where the stream came from`);
    if (ask.hops <= 0) throw new Refusal('hops', 'the stream was passed on too often');
    const holdLimit_ms = Math.max(0, Math.round(ask.deadline - performance.now()));
    const header = {
      kind: 'frontman' as const,
      service: serviceUid,
      port: ask.port,
      holdLimit_ms,
      hops: ask.hops - 1,
      ...(ask.drain_ms === undefined ? {} : { drain_ms: ask.drain_ms }),
    };
    return connectPeer(openPeerStream, peer, header, signal, holdLimit_ms + limits.connectTimeout_ms);
  }

  /** Asking the engine is slow; the answer is good until the route changes, a connection fails, or a second is over. */
  #localAddress(): Promise<string | undefined> {
    const now = performance.now();
    if (this.#address === undefined || this.#address.until < now) {
      const value = this.#parts.localAddress(this.#parts.serviceUid);
      this.#address = { value, until: now + ADDRESS_LIFE_MS };
      const entry = this.#address;
      const drop = (): void => {
        if (this.#address === entry) this.#address = undefined;
      };
      void value.then((address) => (address === undefined ? drop() : undefined), drop);
    }
    return this.#address.value;
  }

  #lease(stream: Duplex): Lease {
    const lease = new Lease(stream, this.#epoch);
    this.#leases.add(lease);
    // The error itself is of no use here: `close` follows, and everything that must happen hangs on that.
    stream.on('error', () => stream.destroy());
    stream.once('close', () => this.#leases.delete(lease));
    return lease;
  }

  #mayTryAgain(failure: Refusal, ask: Ask): boolean {
    if (ask.gone.aborted) return false;
    if (failure.kind === 'moved') return true;
    const now = performance.now();
    if (now >= ask.deadline) return false;
    // The other system says that the service is here and this one says it is there: one of them learns better soon.
    if (failure.kind === 'returned') return ask.cameFrom === undefined;
    const late = failure.kind === 'failed' || failure.kind === 'absent';
    return late && now < this.#turnedAt + this.#parts.limits.grace_ms;
  }
}

function goneRefusal(): Refusal {
  return new Refusal('gone', 'the client went away');
}

export function sameTarget(one: Target, other: Target): boolean {
  if (one.kind === 'peer' && other.kind === 'peer') return one.peer === other.peer;
  return one.kind === other.kind;
}
