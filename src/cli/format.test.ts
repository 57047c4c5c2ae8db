import { describe, expect, it } from 'vitest';
import { formatBar, formatBytes, formatDuration, formatTable, parseDuration, truncate, wrap } from './format.ts';
import { nearest, suggestion } from './suggest.ts';

describe('numbers', () => {
  it('shows bytes and durations the way people say them', () => {
    expect(formatBytes(0)).toBe('0 B');
    expect(formatBytes(268_435_456)).toBe('256 MiB');
    expect(formatBytes(1536)).toBe('1.50 KiB');
    expect(formatDuration(0.4)).toBe('0 ms');
    expect(formatDuration(812)).toBe('812 ms');
    expect(formatDuration(999.7)).toBe('1.00 s');
    expect(formatDuration(59_960)).toBe('1 min 0 s');
    expect(formatDuration(3_720_000)).toBe('1 h 2 min');
  });

  it('reads durations and refuses everything else', () => {
    expect(['500ms', '30s', '10m', '2h', '15', '1.5s'].map(parseDuration)).toEqual([
      500, 30_000, 600_000, 7_200_000, 15_000, 1500,
    ]);
    for (const wrong of ['', 's', '-1s', '1d', '1 s', '1e9', '99999999999'])
      expect(parseDuration(wrong)).toBeUndefined();
  });

  it('draws a bar of exactly its width', () => {
    for (const fraction of [-1, 0, 0.333, 0.5, 0.999, 1, 7]) expect(formatBar(fraction, 20)).toHaveLength(20);
    expect(formatBar(1, 4)).toBe('████');
    expect(formatBar(0, 4)).toBe('░░░░');
  });
});

describe('text', () => {
  it('cuts and wraps at the width', () => {
    expect(truncate('abcdef', 4)).toBe('abc…');
    expect(wrap('one two three', 7)).toEqual(['one two', 'three']);
  });

  it('fits a table into the width by cutting its widest column', () => {
    const columns = [
      { title: 'name', value: (row: { name: string; image: string }) => row.name },
      { title: 'image', value: (row: { name: string; image: string }) => row.image },
    ];
    const text = formatTable(columns, [{ name: 'redis', image: 'x'.repeat(200) }], 80);
    for (const line of text.split('\n')) expect(line.length).toBeLessThanOrEqual(80);
    expect(text).toContain('NAME');
    expect(text).toContain('redis');
    expect(text).toContain('…');
  });
});

describe('suggestions', () => {
  it('names what someone may have meant', () => {
    expect(nearest('reids', ['redis', 'postgres'])).toEqual(['redis']);
    expect(nearest('beta', ['gamma'])).toEqual([]);
    expect(nearest('al', ['alpha', 'beta'])).toEqual(['alpha']);
    expect(suggestion('zzzzzz', ['alpha', 'beta'], 'There are')).toBe('There are: alpha, beta.');
    expect(suggestion('zzzzzz', [], 'There are')).toBe('');
  });
});
