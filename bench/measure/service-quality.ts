import { type Gap, gapsOf, lateShare, lengthOf, longestGap, type PulseLog, valueAt } from './pulse-log.ts';

/** How a service fared before, during and after a move, as its own log says. */
export interface Quality {
  /** The longest time without a tick that touches the move. */
  downtime_ms: number;
  away_at: number;
  back_at: number;
  before: { seconds: number; late_share: number; pages_s: number };
  after: {
    seconds: number;
    late_share: number;
    longest_stall_ms: number;
    /** All the time that it stood still again after it was back. */
    stood_still_ms: number;
    /** From its first tick at the destination until it ran as before for a second; null when it did not by the end. */
    full_speed_ms: number | null;
    /** The share of ticks in time that was asked for that, which a busy machine may lower. */
    on_time_wanted: number;
  };
}

export const PERIOD_MS = 1;
const WINDOW_MS = 1000;
const STEP_MS = 10;
const BEFORE_MS = 2000;
const ON_TIME_WANTED = 0.99;
/** Where even the calm time before the move had more late ticks than that, this much less than what it had is enough. */
const NOISE_ALLOWANCE = 0.01;
const RATE_WANTED = 0.95;

/**
 * `frozen_at`, where it is known, is a moment at which the service certainly stood still, so that a longer stall after
 * it was back is not mistaken for its downtime.
 */
export function qualityOf(log: PulseLog, moved: { from: number; to: number; frozen_at?: number | undefined }): Quality {
  const gaps = gapsOf(log);
  const away = awayTime(gaps, moved);
  const last_ms = log.entries.at(-1)?.at_ms ?? away.to_ms;
  const before_from = Math.max(log.entries[0]?.at_ms ?? moved.from, moved.from - BEFORE_MS);
  const before = {
    seconds: (moved.from - before_from) / 1000,
    late_share: lateShare(gaps, before_from, moved.from, PERIOD_MS),
    pages_s: rateOf(log, before_from, moved.from),
  };
  const later = gaps.filter((gap) => gap.from_ms >= away.to_ms);
  const on_time_wanted = Math.min(ON_TIME_WANTED, 1 - before.late_share - NOISE_ALLOWANCE);
  const back = fullSpeedAt(log, later, away.to_ms, last_ms, on_time_wanted, before.pages_s);
  return {
    downtime_ms: lengthOf(away),
    away_at: away.from_ms,
    back_at: away.to_ms,
    before,
    after: {
      seconds: (last_ms - away.to_ms) / 1000,
      late_share: lateShare(later, away.to_ms, last_ms, PERIOD_MS),
      longest_stall_ms: Math.max(0, ...later.map(lengthOf)),
      stood_still_ms: later.reduce((sum, gap) => sum + lengthOf(gap) - PERIOD_MS, 0),
      full_speed_ms: back === undefined ? null : back - away.to_ms,
      on_time_wanted,
    },
  };
}

function awayTime(gaps: readonly Gap[], moved: { from: number; to: number; frozen_at?: number | undefined }): Gap {
  const at = moved.frozen_at;
  const known = at === undefined ? undefined : longestGap(gaps, at, at);
  return known ?? longestGap(gaps, moved.from, moved.to) ?? { from_ms: moved.from, to_ms: moved.from };
}

function rateOf(log: PulseLog, from_ms: number, to_ms: number): number {
  if (to_ms <= from_ms) return 0;
  return ((valueAt(log.entries, to_ms) - valueAt(log.entries, from_ms)) * 1000) / (to_ms - from_ms);
}

/** The first moment after which, for a whole second, enough ticks come in time and writes keep their rate. */
function fullSpeedAt(
  log: PulseLog,
  gaps: readonly Gap[],
  from_ms: number,
  last_ms: number,
  on_time: number,
  pages_s: number,
): number | undefined {
  for (let at = from_ms; at + WINDOW_MS <= last_ms; at += STEP_MS) {
    const in_time = 1 - lateShare(gaps, at, at + WINDOW_MS, PERIOD_MS) >= on_time;
    if (in_time && rateOf(log, at, at + WINDOW_MS) >= RATE_WANTED * pages_s) return at;
  }
  return undefined;
}
