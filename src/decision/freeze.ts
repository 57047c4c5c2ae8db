import { PAGE_BYTES } from '#src/transfer/pages/model.ts';
import type { FixedCosts } from './costs.ts';
import type { TrackerKind } from './model.ts';

/** What decides how long a transfer of pages takes. */
export interface Link {
  readonly bytes_s: number;
  readonly rtt_ms: number;
  /** Bytes of memory a second that reading, hashing, compressing and writing manage, however fast the link is. */
  readonly path_bytes_s: number;
}

/** What a freeze depends on besides the pages that are left. */
export interface Situation {
  readonly processes: number;
  readonly present_pages: number;
  /** Pages that CRIU itself must carry while the service is frozen: they cannot come later. */
  readonly eager_pages: number;
  readonly tracker: TrackerKind;
  /** What changes in its files, in bytes a second, and so must be copied again. */
  readonly file_change_bytes_s: number;
  readonly costs: FixedCosts;
}

/** The parts of a downtime. Finding and sending what is left goes on beside the dump. */
export interface FreezeParts {
  readonly messages_ms: number;
  readonly check_ms: number;
  readonly transfer_ms: number;
  readonly dump_ms: number;
  readonly restore_ms: number;
  readonly downtime_ms: number;
}

export const PATH_BYTES_S = 600e6;
const GIB_PAGES = 2 ** 30 / PAGE_BYTES;
/** Files are looked at for the last time before the freeze this long before it. */
const FILES_WINDOW_MS = 1000;
const LINK_BYTES_S_MIN = 1000;

/** How long finding the written pages takes, while the service runs or stands still. */
export function scanTime_ms(tracker: TrackerKind, pages: number, costs: FixedCosts): number {
  switch (tracker) {
    case 'hash':
      return ((pages * PAGE_BYTES) / costs.hash_bytes_s) * 1000;
    case 'written':
    case 'soft-dirty':
      return 1 + (pages / GIB_PAGES) * costs.scan_ms_per_gib;
  }
}

/** How long these pages take when `travel_ratio` of their bytes go over the link. */
export function transferTime_ms(pages: number, travel_ratio: number, link: Link): number {
  if (pages <= 0) return 0;
  const bytes = pages * PAGE_BYTES;
  const wire_s = (bytes * travel_ratio) / Math.max(link.bytes_s, LINK_BYTES_S_MIN);
  return link.rtt_ms + Math.max(wire_s, bytes / link.path_bytes_s) * 1000;
}

export interface Left {
  /** Pages that must arrive before the service may run at the destination. */
  readonly pages: number;
  readonly travel_ratio: number;
  /** Whether the tracker must have looked through everything before it may run. */
  readonly check: boolean;
}

export function freezeParts(situation: Situation, link: Link, left: Left): FreezeParts {
  const { costs } = situation;
  const more_ms = Math.max(0, situation.processes - 1) * costs.process_ms;
  const size_ms = (situation.present_pages / GIB_PAGES) * costs.dump_ms_per_gib;
  const files_bytes = (situation.file_change_bytes_s * FILES_WINDOW_MS) / 1000;
  const files_ms = files_bytes === 0 ? 0 : (files_bytes / Math.max(link.bytes_s, LINK_BYTES_S_MIN)) * 1000;
  const dump_ms = costs.dump_ms + more_ms / 2 + size_ms;
  const restore_ms = costs.restore_ms + more_ms / 2;
  const messages_ms = costs.round_trips * link.rtt_ms;
  const check_ms = left.check ? scanTime_ms(situation.tracker, situation.present_pages, costs) : 0;
  const transfer_ms = transferTime_ms(left.pages + situation.eager_pages, left.travel_ratio, link) + files_ms;
  const downtime_ms = messages_ms + Math.max(check_ms + transfer_ms, dump_ms) + restore_ms;
  return { messages_ms, check_ms, transfer_ms, dump_ms, restore_ms, downtime_ms };
}
