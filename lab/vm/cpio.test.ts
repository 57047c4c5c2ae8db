import { describe, expect, it } from 'vitest';
import { cpio } from './cpio.ts';

describe('cpio', () => {
  it('writes headers of 110 characters, names and contents at multiples of four', () => {
    const archive = cpio([{ path: 'init', mode: 0o100755, content: Buffer.from('hello') }]);
    expect(archive.subarray(0, 6).toString()).toBe('070701');
    expect(Number.parseInt(archive.subarray(14, 22).toString(), 16)).toBe(0o100755);
    expect(Number.parseInt(archive.subarray(54, 62).toString(), 16)).toBe(5);
    expect(archive.subarray(110, 115).toString()).toBe('init\0');
    expect(archive.subarray(116, 124).toString()).toBe('hello\0\0\0');
    expect(archive.subarray(124 + 110, 124 + 121).toString()).toBe('TRAILER!!!\0');
    expect(archive.length % 4).toBe(0);
  });
});
