import { z } from 'zod';
import type { CostInputs, Prediction } from './cost.ts';
import { fixedCostsSchema } from './costs.ts';
import { type Goals, goalsSchema, TECHNIQUES, type Technique, techniqueSchema } from './model.ts';

const amount = z.number().min(0).max(1e18);

/** A prediction as the journal keeps it, with what it was made of. */
export const predictionSchema = z.object({
  technique: techniqueSchema,
  /** Whether `ums` chose the technique, and its sentence why. */
  chosen: z.boolean(),
  why: z.string().max(1024),
  downtime_ms: amount,
  total_ms: amount,
  bytes: amount,
  degraded_ms: amount,
  rounds: z.int().min(0).max(1000),
  inputs: z.object({
    present_pages: amount,
    zero_share: z.number().min(0).max(1),
    compress_ratio: z.number().min(0).max(2),
    eager_pages: amount,
    processes: z.int().min(0).max(1e6),
    /** Different pages predicted to be written in a second. */
    dirty_pages_s: amount,
    link_bytes_s: amount,
    rtt_ms: amount,
    tracker: z.enum(['written', 'soft-dirty', 'hash']),
    file_bytes: amount,
    costs: fixedCostsSchema,
    goals: goalsSchema,
  }),
});
export type StoredPrediction = z.infer<typeof predictionSchema>;

/** What the journal keeps of a prediction. */
export function storedPrediction(
  prediction: Prediction,
  inputs: CostInputs,
  goals: Goals,
  choice: { readonly chosen: boolean; readonly why: string },
): StoredPrediction {
  const { technique, downtime_ms, total_ms, bytes, degraded_ms, rounds } = prediction;
  const { situation, link } = inputs;
  return {
    technique,
    chosen: choice.chosen,
    why: choice.why.slice(0, 1024),
    downtime_ms: Math.round(downtime_ms),
    total_ms: Math.round(total_ms),
    bytes: Math.round(bytes),
    degraded_ms: Math.round(degraded_ms),
    rounds,
    inputs: {
      present_pages: situation.present_pages,
      zero_share: inputs.zero_share,
      compress_ratio: inputs.compress_ratio,
      eager_pages: situation.eager_pages,
      processes: situation.processes,
      dirty_pages_s: Math.round(inputs.dirty.pages(1000)),
      link_bytes_s: Math.round(link.bytes_s),
      rtt_ms: link.rtt_ms,
      tracker: situation.tracker,
      file_bytes: inputs.file_bytes,
      costs: situation.costs,
      goals,
    },
  };
}

/** What a migration turned out to be. */
export const outcomeSchema = z.object({
  downtime_ms: amount.nullable(),
  total_ms: amount.nullable(),
  bytes: amount.nullable(),
});
export type Outcome = z.infer<typeof outcomeSchema>;

export interface PredictionRecord {
  readonly prediction: StoredPrediction;
  readonly outcome: Outcome;
}

/** Relative errors: 0.25 = a quarter off. `bias` is the median of the signed ones: above 0, predictions were too high. */
export interface ErrorStatistics {
  readonly count: number;
  readonly median: number;
  readonly p90: number;
  readonly bias: number;
}

export interface PredictionErrors {
  readonly technique: Technique;
  readonly migrations: number;
  readonly downtime: ErrorStatistics | null;
  readonly total: ErrorStatistics | null;
  readonly bytes: ErrorStatistics | null;
}

/** How far predictions were off, for each technique that was used. */
export function predictionError(records: readonly PredictionRecord[]): PredictionErrors[] {
  return TECHNIQUES.flatMap((technique) => {
    const own = records.filter(({ prediction }) => prediction.technique === technique);
    if (own.length === 0) return [];
    const errors = (key: 'downtime_ms' | 'total_ms' | 'bytes') =>
      statistics(own.flatMap(({ prediction, outcome }) => relative(prediction[key], outcome[key])));
    return [
      {
        technique,
        migrations: own.length,
        downtime: errors('downtime_ms'),
        total: errors('total_ms'),
        bytes: errors('bytes'),
      },
    ];
  });
}

function relative(predicted: number, actual: number | null): number[] {
  return actual === null || actual <= 0 ? [] : [(predicted - actual) / actual];
}

function statistics(signed: readonly number[]): ErrorStatistics | null {
  if (signed.length === 0) return null;
  const sizes = signed.map(Math.abs);
  return { count: signed.length, median: quantile(sizes, 0.5), p90: quantile(sizes, 0.9), bias: quantile(signed, 0.5) };
}

/** Between the two nearest values, weighted by how near they are. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  const place = (sorted.length - 1) * share;
  const low = sorted[Math.floor(place)] ?? 0;
  const high = sorted[Math.ceil(place)] ?? low;
  return low + (high - low) * (place - Math.floor(place));
}
