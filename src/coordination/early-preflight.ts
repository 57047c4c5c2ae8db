import type { Preflight } from './preflight.ts';
import { unlessAborted } from './source/unless-aborted.ts';

/** A pre-flight that began before its migration was written down; it ends with whoever waits for it, or when dropped. */
export class EarlyPreflight {
  readonly #dropped = new AbortController();
  readonly #result: Promise<Preflight>;

  constructor(begin: (signal: AbortSignal) => Promise<Preflight>) {
    this.#result = begin(this.#dropped.signal);
    // A failure is heard by whoever asks for the result, and by nobody if nobody does.
    this.#result.catch(() => undefined);
  }

  async result(signal: AbortSignal): Promise<Preflight> {
    const drop = () => this.drop(signal.reason);
    signal.addEventListener('abort', drop, { once: true });
    return await unlessAborted(this.#result, signal);
  }

  drop(why: unknown): void {
    this.#dropped.abort(why);
  }
}
