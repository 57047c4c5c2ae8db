const BURST_S = 0.05;
const INTERVAL_MS = 40;
const BUSY_SHARE = 0.6;
const PROBE = 1.25;
const SLOWER = 0.3;
const RATE_MAX_BYTES_S = 10e9;
const WINDOW_S = 0.5;
const FRESH_RTT_MS = 30_000;

/** Bytes a second over all connections. What has priority goes at once and is paid for by those that wait. */
export class TokenBucket {
  readonly #rate: number | undefined;
  #tokens = 0;
  #at = performance.now();

  constructor(rate_bytes_s: number | undefined) {
    this.#rate = rate_bytes_s;
  }

  /** Milliseconds until something may be sent; 0 = now. */
  wait_ms(): number {
    if (this.#rate === undefined) return 0;
    const now = performance.now();
    this.#tokens = Math.min(this.#rate * BURST_S, this.#tokens + ((now - this.#at) / 1000) * this.#rate);
    this.#at = now;
    return this.#tokens >= 0 ? 0 : Math.ceil((-this.#tokens / this.#rate) * 1000);
  }

  spend(bytes: number): void {
    if (this.#rate !== undefined) this.#tokens -= bytes;
  }
}

/** What acknowledgements say of the link: its rate, its round trip, and how much should be on the way. */
export class LinkMeter {
  readonly #limit: number;
  #rate = 0;
  #rtt_ms = 0;
  #rttAt = 0;
  #smooth_ms = 0;
  #began = 0;
  #bytes = 0;
  #busy_ms = 0;
  #limited = false;
  #heard_at = Number.NEGATIVE_INFINITY;

  constructor(limit_bytes_s: number | undefined) {
    this.#limit = limit_bytes_s ?? Number.POSITIVE_INFINITY;
  }

  /** Bytes a second; 0 before anything was measured. */
  get rate(): number {
    return Math.min(this.#rate, this.#limit);
  }

  get rtt_ms(): number {
    return this.#rtt_ms;
  }

  /** Bytes that a frame should have: a tenth of a second of the link. */
  frameBytes(most: number): number {
    const rate = this.rate === 0 ? 2.5e6 : this.rate;
    return Math.min(most, Math.max(64 * 1024, rate / 10));
  }

  /** Bytes that may be on the way at once: enough to keep the link busy, not so many that urgent pages queue behind. */
  windowBytes(most: number, frame_bytes: number, connections: number): number {
    if (this.#rate === 0) return Math.min(most, 1024 * 1024);
    // A window cut too close to the round trip would throttle the link whenever a busy host answers later than usual, and
    // what is measured then would shrink the window further.
    const pipe = this.rate * Math.max(WINDOW_S, (2 * this.#smooth_ms) / 1000);
    return Math.min(most, Math.max(pipe, 2 * frame_bytes * connections));
  }

  /** The first frame after a time with nothing under way. */
  begin(): void {
    if (performance.now() - this.#heard_at < INTERVAL_MS) return;
    this.#began = performance.now();
    this.#bytes = 0;
    this.#busy_ms = 0;
    this.#limited = false;
  }

  /** Time that went into making frames. */
  busy(ms: number): void {
    this.#busy_ms += ms;
  }

  /** A sender had to wait for the link. */
  waited(): void {
    this.#limited = true;
  }

  acknowledged(bytes: number): void {
    this.#bytes += bytes;
    const now = performance.now();
    this.#heard_at = now;
    const elapsed_ms = now - this.#began;
    if (elapsed_ms < INTERVAL_MS) return;
    const seen = (this.#bytes / elapsed_ms) * 1000;
    // Where nobody had to wait, or the processor was what all waited for, the link could do more than it was asked to.
    const limited = this.#limited && this.#busy_ms < elapsed_ms * BUSY_SHARE;
    if (!limited) this.#rate = Math.max(this.#rate * PROBE, seen);
    else this.#rate = seen > this.#rate ? seen : this.#rate + SLOWER * (seen - this.#rate);
    this.#rate = Math.min(this.#rate, RATE_MAX_BYTES_S);
    this.#began = now;
    this.#bytes = 0;
    this.#busy_ms = 0;
    this.#limited = false;
  }

  roundTrip(ms: number): void {
    const now = performance.now();
    this.#smooth_ms += this.#smooth_ms === 0 ? ms : 0.25 * (ms - this.#smooth_ms);
    if (this.#rtt_ms !== 0 && ms > this.#rtt_ms && now - this.#rttAt < FRESH_RTT_MS) return;
    this.#rtt_ms = ms;
    this.#rttAt = now;
  }
}
