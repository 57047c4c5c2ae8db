import type { PageRange } from '#src/transfer/pages/model.ts';

/** One entry of a process's address space, in pages. */
export interface Mapping extends PageRange {
  /** CRIU can leave its pages out of a lazy dump: private anonymous memory, neither locked nor huge nor the kernel's. */
  readonly lazy: boolean;
  readonly executable: boolean;
  /** The main thread's stack. CRIU dumps the one page each thread's stack pointer is in itself, wherever that is. */
  readonly stack: boolean;
  readonly shared: boolean;
  readonly file: boolean;
}

export type TrackerKind = 'written' | 'soft-dirty' | 'hash';

/** What a round found out about one process. All ranges are sorted, without overlaps, neighbours joined. */
export interface RoundPages {
  /** Pages to read and send: everything that may differ from what was there when the round before returned. */
  readonly changed: PageRange[];
  /** Pages reported before that are not there any more: they read as zeros now. */
  readonly gone: PageRange[];
  readonly present_pages: number;
  readonly elapsed_ms: number;
}

export interface FinalPages {
  readonly changed: PageRange[];
  /** The other pages that are there: with `unchanged`, as when last reported; with `confirm`, to be compared. */
  readonly rest: PageRange[];
  readonly proof: 'unchanged' | 'confirm';
}

/**
 * Finds the pages that a running process writes. Read pages after the round that reports them has returned: whatever is
 * written later is in the next round's, or the final's, `changed`.
 *
 * Only memory that CRIU leaves to us is tracked (`Mapping.lazy`). A process that is not in the answer has vanished.
 */
export interface DirtyTracker {
  readonly kind: TrackerKind;
  /** Why it is not one of the better kinds. */
  readonly fallback: string | undefined;
  /**
   * If it fails, or what it reported could not be sent, nothing may be built on it: after a failure everything counts as
   * changed again; a report that was not sent is the caller's to remember.
   */
  round(pids: readonly number[], signal: AbortSignal): Promise<Map<number, RoundPages>>;
  /** After the freeze; the processes must stay frozen until their pages were read. No round may follow. */
  final(pids: readonly number[]): Promise<Map<number, FinalPages>>;
  /**
   * Lets go of every process: when the service goes on, when it is gone, or after a failure. Not needed before CRIU dumps
   * it. Harmless twice.
   */
  close(): Promise<void>;
}
