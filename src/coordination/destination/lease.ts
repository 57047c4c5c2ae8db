import type { MigrationState } from '../states.ts';

/** A destination that has heard nothing for this long of a migration that has not arrived drops what it made for it. */
export const LEASE_MS = 10 * 60_000;

/** One that could not be dropped at the first try is `aborting`. */
const EARLY: readonly MigrationState[] = ['reserving', 'reserved', 'receiving', 'aborting'];

export interface Heard {
  state: MigrationState;
  /** Since anything was asked. */
  silence_ms: number;
  /** A stream of the source's is open: it is not silent, although it asks for nothing. */
  isReceiving: boolean;
  /** All memory is here. */
  isWhole: boolean;
}

/**
 * Whether nobody comes back for it. What has arrived as a whole may be the only copy by now, and waits for its source however
 * long that takes; what was restored before its memory had arrived is of no use without it, and the source has all of it.
 */
export function isForsaken({ state, silence_ms, isReceiving, isWhole }: Heard): boolean {
  if (silence_ms < LEASE_MS || isReceiving) return false;
  return EARLY.includes(state) || (state === 'restored' && !isWhole);
}
