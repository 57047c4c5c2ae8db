import { describe, expect, it } from 'vitest';
import { parseReply, ReplyError } from '../redis/resp.ts';
import { atMost, below } from '../report.ts';
import { growth } from './footprint.ts';
import { median } from './statistics.ts';
import { parseTicks } from './ticks.ts';

describe('tick log', () => {
  it('finds the longest gap, and sees a restart and a bad checksum', () => {
    const good = parseTicks(
      'tick 0 100.000000\ntick 1 100.001000\ntick 2 100.501000\nchecksum ok 1 at 2\ntick 3 100.502000\n',
    );
    expect(good).toMatchObject({ ticks: 4, continuous: true, checksums_ok: 1, checksums_bad: 0 });
    expect(good.longest_gap_ms).toBeCloseTo(500);
    expect(good.gap_began_at).toBeCloseTo(100_001);
    expect(good.median_gap_ms).toBeCloseTo(1);
    expect(parseTicks('tick 0 1.0\ntick 1 1.1\ntick 0 2.0\n').continuous).toBe(false);
    expect(parseTicks('tick 5 1.0\n').continuous).toBe(false);
    expect(parseTicks('checksum BAD 1 expected 2 at 3\n').checksums_bad).toBe(1);
    expect(parseTicks('tick 7 1.0\ntick 8 1.').ticks).toBe(1);
  });
});

describe('figures', () => {
  it('judges and summarises', () => {
    expect([median([3, 1, 2]), median([4, 1, 2, 3]), median([])]).toEqual([2, 2.5, 0]);
    expect(atMost('x', 1, 1).ok).toBe(true);
    expect(below('x', 1, 1).ok).toBe(false);
    expect(growth([5, 5, 9, 5, 5, 5, 5])).toBe(0);
    expect(growth([5, 5, 5, 6, 7, 8, 9, 10, 11])).toBe(5);
    expect(growth([5])).toBe(0);
  });
});

const parse = (text: string) => parseReply(Buffer.from(text), 0);

describe('the protocol of Redis', () => {
  it('reads every kind of reply', () => {
    expect(parse('+OK\r\n')?.reply).toBe('OK');
    expect(parse(':42\r\n')?.reply).toBe(42);
    expect(parse('$-1\r\n')?.reply).toBeNull();
    expect(parse('$3\r\na\r\n\r\n')?.reply).toEqual(Buffer.from('a\r\n'));
    expect(parse('*2\r\n$1\r\nx\r\n*1\r\n:1\r\n')).toEqual({ reply: [Buffer.from('x'), [1]], next: 19 });
    expect(parse('-ERR no\r\n')?.reply).toBeInstanceOf(ReplyError);
  });

  it('waits for the rest of an incomplete reply', () => {
    const whole = '*2\r\n$5\r\nhello\r\n:7\r\n';
    for (let length = 0; length < whole.length; length += 1) expect(parse(whole.slice(0, length))).toBeUndefined();
    expect(parse(whole)?.next).toBe(whole.length);
  });
});
