import { setTimeout as delay } from 'node:timers/promises';
import { writtenKey, writtenValue } from './data.ts';
import { RespClient } from './resp.ts';

const RECONNECT_EVERY_MS = 10;
/** A reply that takes longer than this is not waited for: the client connects anew and writes again. */
const REPLY_LIMIT_MS = 20_000;

/**
 * A client as careful ones are: it writes numbered values at a steady rate, one at a time, counts a write only when it
 * is acknowledged, and repeats one whose acknowledgement never came.
 */
export class Writer {
  readonly #host: string;
  readonly #port: number;
  readonly #every_ms: number;
  /** Milliseconds since 1970 of each acknowledgement; write number n is at n - 1. */
  readonly #acknowledged_at: number[] = [];
  #client: RespClient | undefined;
  #stopping = false;
  #running: Promise<void> | undefined;
  reconnects = 0;

  constructor(host: string, port: number, perSecond: number) {
    this.#host = host;
    this.#port = port;
    this.#every_ms = 1000 / perSecond;
  }

  start(): void {
    this.#running ??= this.#run();
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    await this.#running;
    this.#client?.close();
  }

  get acknowledged(): number {
    return this.#acknowledged_at.length;
  }

  /** The longest time without an acknowledgement that touches [from, to], and when it began. */
  longestGap(from: number, to: number): { gap_ms: number; began_at: number } {
    let longest = { gap_ms: 0, began_at: from };
    for (let index = 1; index < this.#acknowledged_at.length; index += 1) {
      const before = this.#acknowledged_at[index - 1] ?? 0;
      const after = this.#acknowledged_at[index] ?? 0;
      if (after < from || before > to) continue;
      if (after - before > longest.gap_ms) longest = { gap_ms: after - before, began_at: before };
    }
    return longest;
  }

  medianGap(): number {
    const gaps = this.#acknowledged_at.slice(1).map((at, index) => at - (this.#acknowledged_at[index] ?? at));
    return gaps.toSorted((a, b) => a - b)[Math.floor(gaps.length / 2)] ?? 0;
  }

  async #run(): Promise<void> {
    let next_at = performance.now();
    while (!this.#stopping) {
      const number = this.#acknowledged_at.length + 1;
      await this.#write(number);
      this.#acknowledged_at.push(performance.timeOrigin + performance.now());
      // After an interruption it goes on at its rate; it does not make up for what it could not write.
      next_at = Math.max(next_at + this.#every_ms, performance.now());
      const rest_ms = next_at - performance.now();
      if (rest_ms > 0.5) await delay(rest_ms);
    }
  }

  /** Tries until it is acknowledged. */
  async #write(number: number): Promise<void> {
    for (;;) {
      try {
        this.#client ??= await RespClient.connect(this.#host, this.#port);
        const timeout = AbortSignal.timeout(REPLY_LIMIT_MS);
        const client = this.#client;
        timeout.addEventListener('abort', () => client.close(), { once: true });
        await client.command('SET', writtenKey(number), writtenValue(number));
        return;
      } catch {
        // Refused, closed or silent: in each case the write is not acknowledged, so it is made again.
        this.#client?.close();
        this.#client = undefined;
        this.reconnects += 1;
        await delay(RECONNECT_EVERY_MS);
      }
    }
  }
}
