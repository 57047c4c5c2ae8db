/** memhog's log of itself: `tick N SECONDS` about every millisecond, and `checksum ok|BAD …` when asked. */
export interface TickLog {
  ticks: number;
  /** The longest time between two ticks and when it began, milliseconds since 1970. */
  longest_gap_ms: number;
  gap_began_at: number;
  median_gap_ms: number;
  /** True when every tick follows the one before by one: the same program, never restarted. */
  continuous: boolean;
  checksums_ok: number;
  checksums_bad: number;
}

export function parseTicks(text: string): TickLog {
  let previous: { number: number; at: number } | undefined;
  const log: TickLog = {
    ticks: 0,
    longest_gap_ms: 0,
    gap_began_at: 0,
    median_gap_ms: 0,
    continuous: true,
    checksums_ok: 0,
    checksums_bad: 0,
  };
  const gaps: number[] = [];
  for (const line of text.split('\n')) {
    if (line.startsWith('checksum ok')) log.checksums_ok += 1;
    if (line.startsWith('checksum BAD')) log.checksums_bad += 1;
    const match = /^tick (\d+) (\d+\.\d+)$/.exec(line);
    if (match === null) continue;
    const tick = { number: Number(match[1]), at: Number(match[2]) * 1000 };
    log.ticks += 1;
    if (previous === undefined) log.continuous = tick.number === 0;
    else {
      if (tick.number !== previous.number + 1) log.continuous = false;
      const gap = tick.at - previous.at;
      gaps.push(gap);
      if (gap > log.longest_gap_ms) {
        log.longest_gap_ms = gap;
        log.gap_began_at = previous.at;
      }
    }
    previous = tick;
  }
  log.median_gap_ms = gaps.toSorted((a, b) => a - b)[Math.floor(gaps.length / 2)] ?? 0;
  return log;
}
