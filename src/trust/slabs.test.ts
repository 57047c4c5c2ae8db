import { array, assert, integer, property } from 'fast-check';
import { describe, expect, it } from 'vitest';
import { giveBack } from './slabs.ts';

/** Cuts `slab` at the given places. */
function cut(slab: Buffer, sizes: readonly number[]): Buffer[] {
  const parts: Buffer[] = [];
  let at = 0;
  for (const size of sizes) {
    parts.push(slab.subarray(at, at + size));
    at += size;
  }
  parts.push(slab.subarray(at));
  return parts.filter((part) => part.length > 0);
}

function slabOf(length: number): Buffer {
  return Buffer.from(new ArrayBuffer(length)).fill(7);
}

describe('memory of what sockets read', () => {
  it('goes at once when a chunk has its buffer for itself', () => {
    const chunk = slabOf(40_000);
    const { buffer } = chunk;
    giveBack(chunk);
    expect(buffer.byteLength).toBe(0);
  });

  it('goes with the last part of a slab that was given back, whichever that is, and not before', () => {
    assert(
      property(array(integer({ min: 1, max: 1000 }), { maxLength: 8 }), integer({ min: 0, max: 8 }), (sizes, kept) => {
        const slab = slabOf(8000);
        const parts = cut(slab, sizes);
        const last = parts[kept % parts.length];
        for (const part of parts) if (part !== last) giveBack(part);
        expect(slab.buffer.byteLength).toBe(8000);
        expect(last?.every((byte) => byte === 7)).toBe(true);
        if (last !== undefined) giveBack(last);
        expect(slab.buffer.byteLength).toBe(0);
      }),
    );
  });

  it('stays with the garbage collector when more slabs are in use than are remembered', () => {
    const slabs = Array.from({ length: 100 }, () => slabOf(100));
    for (const slab of slabs) giveBack(slab.subarray(0, 50));
    for (const slab of slabs) giveBack(slab.subarray(50));
    const left = slabs.filter((slab) => slab.buffer.byteLength > 0);
    // A forgotten slab begins anew with its second half, and so never comes to its whole.
    expect(left.length).toBeGreaterThan(0);
    for (const slab of left) expect(slab.every((byte) => byte === 7)).toBe(true);
  });
});
