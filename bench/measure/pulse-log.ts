/** The log of the workload pulse, of itself (`pulse hold`) or of a client (`pulse ask`): see lab/workloads/pulse.c. */
export interface Entry {
  n: number;
  /** Milliseconds since 1970. */
  at_ms: number;
  /** Since the one before, where that was more than two periods; 0 for those that are noted for their time alone. */
  gap_ms: number;
  /** Pages written so far, or the tick that was answered. */
  value: number;
}

export interface PulseLog {
  entries: Entry[];
  /** Every hundredth is there once and none comes again: the same program, never restarted, and never two of it. */
  continuous: boolean;
  checksums_ok: number;
  checksums_bad: number;
  /** Of a client: what it got, how often it had to connect anew, and answers older than one it already had. */
  answers: number;
  reconnects: number;
  backwards: number;
  /** Why a log cannot be trusted, as the program itself says it. */
  dropped: number;
}

const BEAT = 100;

export function parsePulseLog(text: string): PulseLog {
  const log: PulseLog = {
    entries: [],
    continuous: true,
    checksums_ok: 0,
    checksums_bad: 0,
    answers: 0,
    reconnects: 0,
    backwards: 0,
    dropped: 0,
  };
  // A line without its end is being written just now.
  for (const line of text.split('\n').slice(0, -1)) {
    const words = line.split(' ');
    if (words[0] === 'beat' || words[0] === 'late') {
      const [n, at_s, gap_us, value] = words.slice(1).map(Number);
      if (n === undefined || at_s === undefined || gap_us === undefined || value === undefined) continue;
      log.entries.push({ n, at_ms: at_s * 1000, gap_ms: gap_us / 1000, value });
    } else if (words[0] === 'checksum') {
      if (words[1] === 'ok') log.checksums_ok += 1;
      else log.checksums_bad += 1;
    } else if (words[0] === 'end') {
      log.answers = Number(words[2]);
      log.reconnects = Number(words[4]);
      log.backwards = Number(words[6]);
    } else if (words[0] === 'dropped') log.dropped += Number(words[1]);
  }
  log.continuous = log.dropped === 0 && isContinuous(log.entries);
  return log;
}

function isContinuous(entries: readonly Entry[]): boolean {
  let next = 0;
  let last = -1;
  for (const { n } of entries) {
    if (n <= last || n > next) return false;
    last = n;
    if (n === next) next += BEAT;
  }
  return entries.length > 0;
}

/** A time without a tick. */
export interface Gap {
  from_ms: number;
  to_ms: number;
}

export function gapsOf(log: PulseLog): Gap[] {
  return log.entries
    .filter((entry) => entry.gap_ms > 0)
    .map((entry) => ({ from_ms: entry.at_ms - entry.gap_ms, to_ms: entry.at_ms }));
}

export const lengthOf = (gap: Gap): number => gap.to_ms - gap.from_ms;

/** The longest gap that touches [from, to]. */
export function longestGap(gaps: readonly Gap[], from_ms: number, to_ms: number): Gap | undefined {
  return gaps
    .filter((gap) => gap.to_ms >= from_ms && gap.from_ms <= to_ms)
    .reduce<Gap | undefined>(
      (longest, gap) => (longest === undefined || lengthOf(gap) > lengthOf(longest) ? gap : longest),
      undefined,
    );
}

/** Share of the ticks due in [from, to] that did not come in time. */
export function lateShare(gaps: readonly Gap[], from_ms: number, to_ms: number, period_ms: number): number {
  if (to_ms <= from_ms) return 0;
  const missed = gaps.reduce((sum, gap) => {
    const overlap = Math.min(gap.to_ms, to_ms) - Math.max(gap.from_ms, from_ms);
    // A gap of five periods is four ticks that did not come and one that did.
    return overlap <= 0 ? sum : sum + (overlap / period_ms) * (1 - period_ms / lengthOf(gap));
  }, 0);
  return (missed * period_ms) / (to_ms - from_ms);
}

/** The value at a moment, on the line between the entries around it. */
export function valueAt(entries: readonly Entry[], at_ms: number): number {
  let low = 0;
  let high = entries.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if ((entries[middle]?.at_ms ?? 0) <= at_ms) low = middle;
    else high = middle - 1;
  }
  const [before, after] = [entries[low], entries[low + 1]];
  if (before === undefined) return 0;
  if (after === undefined || after.at_ms <= before.at_ms || at_ms <= before.at_ms) return before.value;
  return before.value + ((after.value - before.value) * (at_ms - before.at_ms)) / (after.at_ms - before.at_ms);
}
