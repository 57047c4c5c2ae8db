import { once } from 'node:events';
import { type Duplex, duplexPair } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';

/** What a FakeLink does to the bytes of one direction when so many have passed. Each happens once. */
export interface Fault {
  readonly kind: 'flip' | 'drop' | 'duplicate' | 'reorder' | 'close' | 'stall';
  readonly direction: 'there' | 'back';
  readonly index: number;
  /** Bytes that have passed on this index and in this direction, over all its connections. */
  readonly at: number;
}

export interface FakeLinkOptions {
  readonly faults?: readonly Fault[];
  /** Pieces in which bytes arrive. */
  readonly chunk_bytes?: number;
  /** Bytes a second of each connection. */
  readonly rate_bytes_s?: number;
}

/** A wire that reorders, duplicates, drops and alters bytes, is slow, and closes in the middle. */
export class FakeLink {
  readonly #faults: Fault[];
  readonly #options: FakeLinkOptions;
  readonly #passed = new Map<string, number>();
  readonly #open = new Set<Duplex>();
  opened = 0;
  happened = 0;

  constructor(options: FakeLinkOptions = {}) {
    this.#options = options;
    this.#faults = [...(options.faults ?? [])];
  }

  readonly wire = (index: number): { near: Duplex; far: Duplex } => {
    const [near, left] = duplexPair();
    const [right, far] = duplexPair();
    this.opened += 1;
    for (const end of [near, left, right, far]) end.on('error', () => undefined);
    const cut = (): void => {
      for (const end of [near, left, right, far]) end.destroy();
    };
    this.#open.add(near);
    near.once('close', () => {
      this.#open.delete(near);
      left.destroy();
      right.destroy();
      far.destroy();
    });
    far.once('close', cut);
    void this.#pass(index, 'there', left, right, cut);
    void this.#pass(index, 'back', right, left, cut);
    return { near, far };
  };

  /** Breaks every connection there is. */
  breakAll(): void {
    for (const stream of this.#open) stream.destroy();
  }

  async #pass(index: number, direction: Fault['direction'], from: Duplex, to: Duplex, cut: () => void): Promise<void> {
    const size = this.#options.chunk_bytes ?? 65_536;
    let held: Buffer | undefined;
    try {
      for await (const piece of from) {
        const whole = Buffer.from(piece);
        for (let at = 0; at < whole.length; at += size) {
          const chunk = whole.subarray(at, at + size);
          const kind = this.#strike(index, direction, chunk.length);
          if (kind === 'stall') return;
          if (kind === 'close') {
            to.write(chunk.subarray(0, Math.floor(chunk.length / 2)));
            await delay(1);
            cut();
            return;
          }
          if (kind === 'reorder') {
            held = Buffer.from(chunk);
            continue;
          }
          await this.#deliver(to, kind, chunk);
          if (held !== undefined) to.write(held);
          held = undefined;
        }
      }
      to.end();
    } catch {
      // The connection broke, as it was meant to.
      cut();
    }
  }

  async #deliver(to: Duplex, kind: Fault['kind'] | undefined, chunk: Buffer): Promise<void> {
    const out = Buffer.from(chunk);
    if (kind === 'flip') {
      const at = Math.floor(out.length / 2);
      out.writeUInt8(out.readUInt8(at) ^ 0x10, at);
    }
    if (kind === 'drop') return;
    if (this.#options.rate_bytes_s !== undefined) await delay((out.length / this.#options.rate_bytes_s) * 1000);
    if (kind === 'duplicate') to.write(out);
    if (!to.write(out)) {
      const gone = new AbortController();
      const { signal } = gone;
      await Promise.race([once(to, 'drain', { signal }), once(to, 'close', { signal })]).catch(() => undefined);
      gone.abort();
    }
  }

  #strike(index: number, direction: Fault['direction'], bytes: number): Fault['kind'] | undefined {
    const key = `${index}/${direction}`;
    const passed = (this.#passed.get(key) ?? 0) + bytes;
    this.#passed.set(key, passed);
    const found = this.#faults.findIndex(
      (fault) => fault.index === index && fault.direction === direction && fault.at < passed,
    );
    if (found < 0) return undefined;
    this.happened += 1;
    return this.#faults.splice(found, 1)[0]?.kind;
  }
}
