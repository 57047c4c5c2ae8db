import { describe, expect, it } from 'vitest';
import { isForsaken, LEASE_MS } from './lease.ts';

const silent = { silence_ms: LEASE_MS, isReceiving: false, isWhole: false };

describe('what was made for a migration', () => {
  it('is dropped when nothing was heard of it for the time of a lease', () => {
    expect(isForsaken({ ...silent, state: 'receiving' })).toBe(true);
    expect(isForsaken({ ...silent, state: 'receiving', silence_ms: LEASE_MS - 1 })).toBe(false);
  });

  it('is kept while data come in, however long that takes', () => {
    expect(isForsaken({ ...silent, state: 'receiving', silence_ms: 100 * LEASE_MS, isReceiving: true })).toBe(false);
  });

  it('is kept where it may be the only copy: when all of its memory is there', () => {
    expect(isForsaken({ ...silent, state: 'restored' })).toBe(true);
    expect(isForsaken({ ...silent, state: 'restored', isWhole: true })).toBe(false);
    for (const state of ['committing', 'active', 'settling'] as const) {
      expect(isForsaken({ ...silent, state })).toBe(false);
    }
  });
});
