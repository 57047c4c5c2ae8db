import type { Logger } from '#src/telemetry/log.ts';
import type { Refusal } from './contract.ts';

const LOG_EVERY_MS = 1000;

/** Counts what became of connections and requests, and logs refusals without letting a flood of them fill the log. */
export class Counters {
  /** By outcome: `passed`, `dropped`, `replayed`, `broken`, or `refused_` and the kind of the refusal. */
  readonly values = new Map<string, number>();
  readonly #log: Logger;
  #loggedAt = Number.NEGATIVE_INFINITY;
  #unlogged = 0;

  constructor(log: Logger) {
    this.#log = log;
  }

  add(outcome: string, more = 1): void {
    this.values.set(outcome, (this.values.get(outcome) ?? 0) + more);
  }

  refused(refusal: Refusal, where: Record<string, unknown>): void {
    this.add(`refused_${refusal.kind}`);
    if (refusal.kind === 'gone') return;
    this.#unlogged += 1;
    const now = performance.now();
    if (now < this.#loggedAt + LOG_EVERY_MS) return;
    this.#log.warn({ ...where, refusal: refusal.kind, reason: refusal.message, count: this.#unlogged }, 'refused');
    this.#loggedAt = now;
    this.#unlogged = 0;
  }
}
