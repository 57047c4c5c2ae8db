import { describe, expect, it } from 'vitest';
import { gapsOf, lateShare, longestGap, parsePulseLog, valueAt } from './pulse-log.ts';
import { qualityOf } from './service-quality.ts';

/** A log as pulse writes it, of ticks each millisecond but where a gap is told of: [tick, milliseconds]. */
function logOf(ticks: number, gaps: readonly [number, number][], pages_each = 2): string {
  let at_us = 1_000_000_000;
  let text = '';
  for (let n = 0; n < ticks; n += 1) {
    const gap_ms = gaps.find(([tick]) => tick === n)?.[1] ?? 1;
    if (n > 0) at_us += gap_ms * 1000;
    const at = `${Math.floor(at_us / 1e6)}.${String(at_us % 1e6).padStart(6, '0')}`;
    if (gap_ms > 2) text += `late ${n} ${at} ${gap_ms * 1000} ${n * pages_each}\n`;
    else if (n % 100 === 0) text += `beat ${n} ${at} 0 ${n * pages_each}\n`;
  }
  return text;
}

describe('log of pulse', () => {
  it('sees a restart, a second copy, a lost line and a bad checksum', () => {
    const good = logOf(500, [[250, 30]]);
    expect(parsePulseLog(good)).toMatchObject({ continuous: true, checksums_bad: 0 });
    expect(parsePulseLog(`${good}${logOf(200, [])}`).continuous).toBe(false);
    expect(parsePulseLog(good.replace(/beat 300 .*\n/, '')).continuous).toBe(false);
    expect(parsePulseLog(`${good}dropped 3\n`).continuous).toBe(false);
    expect(parsePulseLog('').continuous).toBe(false);
    const ends = 'checksum ok 1 at 2\nchecksum BAD pages 1 first 2\nend answers 9 reconnects 2 backwards 1\n';
    expect(parsePulseLog(`${good}${ends}beat 9`)).toMatchObject({
      checksums_ok: 1,
      checksums_bad: 1,
      reconnects: 2,
      backwards: 1,
    });
  });

  it('finds gaps, shares and values', () => {
    const log = parsePulseLog(
      logOf(3000, [
        [1000, 301],
        [1500, 5],
      ]),
    );
    const gaps = gapsOf(log);
    const gap = longestGap(gaps, 1_000_000, 1_010_000);
    expect(gap?.from_ms).toBeCloseTo(1_000_999, 0);
    expect((gap?.to_ms ?? 0) - (gap?.from_ms ?? 0)).toBeCloseTo(301);
    expect(longestGap(gaps, 1_001_400, 1_001_500)).toBeUndefined();
    expect(lateShare(gaps, 1_000_000, 1_001_300, 1)).toBeCloseTo(300 / 1300, 3);
    expect(lateShare(gaps, 1_001_700, 1_002_700, 1)).toBeCloseTo(0.004, 4);
    expect(valueAt(log.entries, 1_000_550)).toBeCloseTo(1100);
    expect(valueAt(log.entries, 5)).toBe(0);
  });
});

describe('quality of service', () => {
  it('tells downtime, stalls and the way back to full speed', () => {
    // Away for 200 ms at tick 3000, then for half a second every tenth tick comes 9 ms late.
    const stalls = Array.from({ length: 50 }, (_, at): [number, number] => [3010 + at * 10, 10]);
    const log = parsePulseLog(logOf(8000, [[3000, 200], ...stalls]));
    const quality = qualityOf(log, { from: 1_002_900, to: 1_005_000 });
    expect(quality.downtime_ms).toBeCloseTo(200);
    expect(quality.before).toMatchObject({ late_share: 0, pages_s: expect.closeTo(2000, 0) });
    expect(quality.after.longest_stall_ms).toBeCloseTo(10);
    expect(quality.after.stood_still_ms).toBeCloseTo(50 * 9);
    // The stalls end 950 ms after it was back; the second that follows may hold one of them and still be 99 % in time.
    expect(quality.after.full_speed_ms ?? 0).toBeGreaterThan(900);
    expect(quality.after.full_speed_ms ?? 0).toBeLessThan(980);
  });

  it('is not misled by a stall longer than the freeze, nor by a log that ends too soon', () => {
    const log = parsePulseLog(
      logOf(4500, [
        [3000, 50],
        [3200, 400],
      ]),
    );
    const moved = { from: 1_002_900, to: 1_004_000 };
    expect(qualityOf(log, moved).downtime_ms).toBeCloseTo(400);
    const quality = qualityOf(log, { ...moved, frozen_at: 1_003_020 });
    expect(quality.downtime_ms).toBeCloseTo(50);
    expect(quality.after.longest_stall_ms).toBeCloseTo(400);
    const short = parsePulseLog(logOf(3500, [[3000, 50]]));
    expect(qualityOf(short, moved).after.full_speed_ms).toBeNull();
  });

  it('asks no more of a busy machine than it gave before', () => {
    const noise = Array.from({ length: 300 }, (_, at): [number, number] => [at * 20 + 10, 3]);
    const log = parsePulseLog(logOf(6000, [...noise, [3000, 50]]));
    const quality = qualityOf(log, { from: 1_003_000, to: 1_004_000 });
    expect(quality.before.late_share).toBeCloseTo(2 / 22, 2);
    expect(quality.after.full_speed_ms).toBe(0);
  });
});
