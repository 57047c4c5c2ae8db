import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { PAGE_BYTES } from '#src/transfer/pages/model.ts';
import type { RoundMeasurement } from '#src/decision/index.ts';
import { watchRound } from './round-watch.ts';

const PAGES = 1000;

/** A round that sends all of its pages evenly in so many milliseconds. */
function measureOf(all_ms: number): () => RoundMeasurement {
  const begun_ms = performance.now();
  return () => {
    const elapsed_ms = performance.now() - begun_ms;
    const data_bytes = Math.min(1, elapsed_ms / all_ms) * PAGES * PAGE_BYTES;
    const sent = { zero_bytes: 0, reference_bytes: 0, data_bytes, wire_bytes: data_bytes };
    const pages = { present_pages: PAGES, changed_pages: PAGES };
    return {
      round: 0,
      interval_ms: 0,
      elapsed_ms,
      ...pages,
      sent,
      link_bytes_s: 0,
      rtt_ms: 0,
      scan_ms: 0,
      cpu_share: 1,
    };
  };
}

describe('the end of a round', () => {
  beforeEach(() => {
    vi.useFakeTimers();
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  it('is told once, when it is near', async () => {
    const nearEnd = vi.fn(async () => false);
    const cut = vi.fn();
    const watch = watchRound({ measure: measureOf(5000), cut_ms: 0, cut, nearEnd });
    await vi.advanceTimersByTimeAsync(4000);
    expect(nearEnd).not.toHaveBeenCalled();
    await vi.advanceTimersByTimeAsync(950);
    expect(nearEnd).toHaveBeenCalledOnce();
    watch.stop();
    expect([cut.mock.calls.length, watch.isCut()]).toEqual([0, false]);
  });

  it('is cut short when the freeze follows, and not before that is so', async () => {
    const ready = Promise.withResolvers<boolean>();
    const cut = vi.fn();
    const watch = watchRound({ measure: measureOf(5000), cut_ms: 1000, cut, nearEnd: () => ready.promise });
    await vi.advanceTimersByTimeAsync(4500);
    expect(cut).not.toHaveBeenCalled();
    ready.resolve(true);
    await vi.advanceTimersByTimeAsync(50);
    expect([cut.mock.calls.length, watch.isCut()]).toEqual([1, true]);
    await vi.advanceTimersByTimeAsync(1000);
    expect(cut).toHaveBeenCalledOnce();
    watch.stop();
  });

  it('is not cut where whoever was asked has failed', async () => {
    const cut = vi.fn();
    const nearEnd = vi.fn(() => Promise.reject(new Error('the destination went away')));
    const watch = watchRound({ measure: measureOf(5000), cut_ms: 1000, cut, nearEnd });
    await vi.advanceTimersByTimeAsync(5000);
    watch.stop();
    expect([cut.mock.calls.length, watch.isCut()]).toEqual([0, false]);
  });
});
