import { z } from 'zod';

export const TECHNIQUES = ['cold', 'pre-copy', 'post-copy', 'hybrid'] as const;
export const techniqueSchema = z.enum(TECHNIQUES);
export type Technique = z.infer<typeof techniqueSchema>;

/** What to do when rounds stop helping before the freeze fits the budget. */
export const ON_STALL = ['throttle', 'post-copy', 'stop'] as const;
export const onStallSchema = z.enum(ON_STALL);
export type OnStall = z.infer<typeof onStallSchema>;

export const MAX_DOWNTIME_MS = 300;
export const MAX_ROUNDS = 30;
export const ROUNDS_LIMIT = 100;

/** The budget of a migration and what happens when it cannot be met. */
export const goalsSchema = z.object({
  max_downtime_ms: z.number().min(1).max(3_600_000).default(MAX_DOWNTIME_MS),
  max_rounds: z.int().min(1).max(ROUNDS_LIMIT).default(MAX_ROUNDS),
  on_stall: onStallSchema.default('throttle'),
});
export type Goals = z.infer<typeof goalsSchema>;

/** How written pages are found: by the kernel (two ways), or by reading everything again. */
export type TrackerKind = 'written' | 'soft-dirty' | 'hash';

/** Bytes of one round; a `SendReport` of the page path is one. */
export interface SentBytes {
  readonly zero_bytes: number;
  readonly reference_bytes: number;
  /** Content, before compression. */
  readonly data_bytes: number;
  readonly wire_bytes: number;
}

/** What was seen in one round over the memory of a running service. */
export interface RoundMeasurement {
  /** 0 is the first, which sends everything. */
  readonly round: number;
  /** From the previous round's look at the memory to this one's, when `changed_pages` were written; 0 in the first. */
  readonly interval_ms: number;
  /** From this round's look at the memory until all it found was acknowledged. */
  readonly elapsed_ms: number;
  readonly present_pages: number;
  readonly changed_pages: number;
  readonly sent: SentBytes;
  readonly link_bytes_s: number;
  readonly rtt_ms: number;
  /** Time spent finding the changed pages. */
  readonly scan_ms: number;
  /** Share of its usual CPU time that the service had while this round went on: 1 unless it was throttled. */
  readonly cpu_share: number;
}
