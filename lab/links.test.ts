import { assert, integer, property } from 'fast-check';
import { expect, test } from 'vitest';
import { bucket, formatRate, parseDelay, parseLoss, parsePing, parseRate } from './links.ts';

test.each([
  ['1gbit', 1e9],
  ['11.34mbit', 11_340_000],
  ['800kbit', 800_000],
  ['max', null],
])('%s is a rate', (text, rate) => expect(parseRate(text)).toBe(rate));

test.each(['', '1', 'fast', '-1mbit', '1bit', '1000gbit', '1 gbit extra'])('"%s" is no rate', (text) => {
  expect(() => parseRate(text)).toThrow('is not a rate');
});

test('delays and losses take their unit or none, within limits', () => {
  expect([parseDelay('61.5ms'), parseDelay('0'), parseLoss('0.5%'), parseLoss('100')]).toEqual([61.5, 0, 0.5, 100]);
  for (const bad of ['', '-1', '10001', 'soon']) expect(() => parseDelay(bad)).toThrow('is not a delay');
  expect(() => parseLoss('101')).toThrow('is not a loss');
});

test('rates are written with four digits at most', () => {
  expect([formatRate(null), formatRate(1e9), formatRate(11_340_000), formatRate(95_770_688)]).toEqual([
    'unlimited',
    '1 Gbit/s',
    '11.34 Mbit/s',
    '95.77 Mbit/s',
  ]);
});

test('a bucket holds a few frames and at least a path full of data, at any rate and delay', () => {
  const rates = integer({ min: 8000, max: 10_000_000_000 });
  const delays = integer({ min: 0, max: 10_000 });
  assert(
    property(rates, delays, (rate_bps, delay_ms) => {
      const size = bucket({ rate_bps, delay_ms, loss_percent: 0 });
      return (
        size !== null &&
        size.burst_bytes >= 16_384 &&
        size.limit_bytes - size.burst_bytes >= (rate_bps / 8000) * 2 * delay_ms
      );
    }),
  );
  expect(bucket({ rate_bps: null, delay_ms: 0, loss_percent: 0 })).toBeNull();
});

test("ping's summary is read", () => {
  const text =
    '1000 packets transmitted, 982 received, 1.8% packet loss, time 2000ms\nrtt min/avg/max/mdev = 0.040/0.106/1.2/0.05 ms\n';
  expect(parsePing(text)).toEqual({ rtt_ms: 0.106, rtt_min_ms: 0.04, loss_percent: 1.8 });
  expect(() => parsePing('1 packets transmitted, 0 received, 100% packet loss, time 0ms\n')).toThrow('do not reach');
});
