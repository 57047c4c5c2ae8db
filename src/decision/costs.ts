import { z } from 'zod';
import { PAGE_BYTES } from '#src/transfer/pages/model.ts';
import type { TrackerKind } from './model.ts';

const duration = z.number().min(0).max(600_000);

/** What a migration costs whatever the size of its memory: learnt for each engine from how migrations went. */
export const fixedCostsSchema = z.object({
  /** Before the first round or the freeze: reserving, preparing the destination. */
  prepare_ms: duration,
  /** From the freeze until CRIU's images are there, of one small process. */
  dump_ms: duration,
  /** From the images being there until the service runs, of one small process. */
  restore_ms: duration,
  /** For each process after the first, dump and restore together. */
  process_ms: duration,
  /** CRIU walks the page tables of all memory, also when it carries none of it. */
  dump_ms_per_gib: duration,
  /** Messages between the agents, one after another, while the service stands still. */
  round_trips: z.number().min(0).max(100),
  /** After the service runs at the destination: health, confirmation, removal. */
  settle_ms: duration,
  /** The kernel's list of written pages. */
  scan_ms_per_gib: duration,
  /** Reading and digesting all memory. */
  hash_bytes_s: z.number().min(1e6).max(1e12),
});
export type FixedCosts = z.infer<typeof fixedCostsSchema>;

export const DEFAULT_COSTS: FixedCosts = {
  prepare_ms: 600,
  dump_ms: 90,
  restore_ms: 120,
  process_ms: 6,
  dump_ms_per_gib: 40,
  round_trips: 3,
  settle_ms: 800,
  scan_ms_per_gib: 8,
  hash_bytes_s: 2e9,
};

/** What one migration showed; only what was measured. */
export const observedCostsSchema = fixedCostsSchema.partial();
export type ObservedCosts = z.infer<typeof observedCostsSchema>;

/** How much the newest migration counts. */
const NEWEST = 0.3;
/** A migration that was disturbed may say ten times what is usual: it moves the cost by no more than this factor. */
const JUMP_MAX = 3;
const GIB_PAGES = 2 ** 30 / PAGE_BYTES;
const SCAN_GIB_MIN = 1 / 16;

/** Exponentially weighted: what was seen lately counts most, one odd migration does not count for everything. */
export function learnCosts(costs: FixedCosts, seen: ObservedCosts): FixedCosts {
  const learnt = { ...costs };
  for (const [key, value] of Object.entries(seen)) {
    if (!isCost(key) || !Number.isFinite(value) || value < 0) continue;
    const before = costs[key];
    const bounded = before === 0 ? value : Math.min(Math.max(value, before / JUMP_MAX), before * JUMP_MAX);
    learnt[key] = before + NEWEST * (bounded - before);
  }
  return fixedCostsSchema.parse(learnt);
}

/** The costs after these migrations of one engine, oldest first. */
export function costsAfter(seen: readonly ObservedCosts[]): FixedCosts {
  return seen.reduce<FixedCosts>(learnCosts, DEFAULT_COSTS);
}

/** What a migration's steps took; undefined where it was not measured. */
export interface MeasuredSteps {
  readonly processes: number;
  readonly present_pages: number;
  readonly prepare_ms?: number;
  /** From the freeze until CRIU's images were there. */
  readonly dump_ms?: number;
  /** From the images being there until the service ran. */
  readonly restore_ms?: number;
  readonly settle_ms?: number;
  /** A look through all of the memory for written pages. */
  readonly scan_ms?: number;
  readonly tracker?: TrackerKind;
}

/** What of a migration's times would have been the same for any service. */
export function observedCosts(measured: MeasuredSteps, costs: FixedCosts): ObservedCosts {
  const more_ms = (Math.max(0, measured.processes - 1) * costs.process_ms) / 2;
  const gib = measured.present_pages / GIB_PAGES;
  const { prepare_ms, dump_ms, restore_ms, settle_ms, scan_ms, tracker } = measured;
  const bytes_s = scan_ms === undefined || scan_ms <= 0 ? undefined : (gib * 2 ** 30 * 1000) / scan_ms;
  // Small memories say little about a rate.
  const scanned = scan_ms !== undefined && gib >= SCAN_GIB_MIN;
  return {
    ...(prepare_ms === undefined ? {} : { prepare_ms }),
    ...(dump_ms === undefined ? {} : { dump_ms: Math.max(1, dump_ms - more_ms - gib * costs.dump_ms_per_gib) }),
    ...(restore_ms === undefined ? {} : { restore_ms: Math.max(1, restore_ms - more_ms) }),
    ...(settle_ms === undefined ? {} : { settle_ms }),
    ...(scanned && tracker === 'hash' && bytes_s !== undefined ? { hash_bytes_s: bytes_s } : {}),
    ...(scanned && tracker !== undefined && tracker !== 'hash' ? { scan_ms_per_gib: scan_ms / gib } : {}),
  };
}

function isCost(key: string): key is keyof FixedCosts {
  return Object.hasOwn(DEFAULT_COSTS, key);
}
