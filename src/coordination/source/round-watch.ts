import type { RoundMeasurement } from '#src/decision/index.ts';
import { PAGE_BYTES } from '#src/transfer/pages/model.ts';

/** So long before the end of a round it counts as near: what must be ready for the freeze takes half of it. */
const NEAR_END_MS = 800;
const LOOK_MS = 25;

export interface RoundWatched {
  measure: () => RoundMeasurement;
  /** So much of its end may be left out once the freeze follows; 0 for nothing. */
  cut_ms: number;
  /** Leaves the rest out. */
  cut: () => void;
  /** Answers whether the freeze follows, when that may come at any time. */
  nearEnd: ((measured: RoundMeasurement) => Promise<boolean>) | undefined;
}

/**
 * Watches a round that has just begun to send for its end: tells once that it is near, and cuts it short where that may
 * be. A round may be over before anybody could see that.
 */
export function watchRound({ measure, cut_ms, cut, nearEnd }: RoundWatched): {
  stop: () => void;
  isCut: () => boolean;
} {
  const begun_ms = performance.now();
  let isNear = false;
  let isReady = false;
  let isCut = false;
  const watching = setInterval(() => {
    const measured = measure();
    const rest_ms = restOf(measured, performance.now() - begun_ms);
    if (!isNear && rest_ms <= NEAR_END_MS + cut_ms) {
      isNear = true;
      // Whoever is asked hears of the failure too.
      nearEnd?.(measured).then(
        (follows) => (isReady = follows),
        () => undefined,
      );
    }
    if (!isReady || rest_ms > cut_ms) return;
    clearInterval(watching);
    isCut = true;
    cut();
  }, LOOK_MS);
  return { stop: () => clearInterval(watching), isCut: () => isCut };
}

/** How long the rest of a round takes if it goes on as it went, in ms. */
function restOf({ changed_pages, sent }: RoundMeasurement, sending_ms: number): number {
  const done_bytes = sent.zero_bytes + sent.reference_bytes + sent.data_bytes;
  const left_bytes = Math.max(changed_pages * PAGE_BYTES - done_bytes, 0);
  return left_bytes === 0 ? 0 : (sending_ms * left_bytes) / Math.max(done_bytes, 1);
}
