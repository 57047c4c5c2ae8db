import {
  choose,
  type Choice,
  type CostInputs,
  costsAfter,
  type DirtyObservation,
  type Feasibility,
  type FixedCosts,
  fixedCostsSchema,
  type Goals,
  type ObservedCosts,
  observedCosts,
  PATH_BYTES_S,
  predictDirty,
  type PredictionRecord,
  predictionSchema,
  type StoredPrediction,
  storedPrediction,
  type Technique,
} from '#src/decision/index.ts';
import { PAGE_BYTES } from '#src/transfer/pages/model.ts';
import type { SagaContext } from './context.ts';
import type { Journal, Row } from './journal.ts';
import type { Sizes } from './messages.ts';
import { planOf, runsEarly } from './plan.ts';
import type { TechniqueRow } from './schema.ts';
import type { MemorySample } from './sample.ts';

/** Of a link over which nothing has travelled yet. */
const UNKNOWN_LINK_BYTES_S = 125e6;
/** How far back outcomes are looked at. */
const OUTCOMES_MAX = 50;

/** What a migration costs whatever the size of its memory, from how migrations of this engine went here. */
export function learntCosts(context: SagaContext, engine: Row['engine']): FixedCosts {
  const past = context.journal.all().filter((row) => row.engine === engine && row.data['observed'] !== undefined);
  return costsAfter(
    past
      .slice(0, OUTCOMES_MAX)
      .toReversed()
      .map((row) => observedSchema.parse(row.data['observed'])),
  );
}
const observedSchema = fixedCostsSchema.partial();

/** What the link to a system carried when memory last moved over it. */
function linkTo(context: SagaContext, destination: string): number {
  for (const row of context.journal.all()) {
    const rate = row.data['link_bytes_s'];
    if (row.destination === destination && typeof rate === 'number' && rate > 0) return rate;
  }
  return UNKNOWN_LINK_BYTES_S;
}

export interface ForecastInputs {
  engine: Row['engine'];
  destination: string;
  sizes: Sizes;
  sample: MemorySample;
  processes: number;
  rtt_ms: number;
  goals: Goals;
  tracker: 'written' | 'soft-dirty' | 'hash';
  /** Why memory cannot travel on the page path; undefined when it can. */
  notLazy: string | undefined;
}

/** What each technique would take, and which one is best for the goals. */
export function forecast(context: SagaContext, inputs: ForecastInputs): Choice {
  return choose({
    feasibility: feasibility(inputs.notLazy),
    goals: inputs.goals,
    costs: costInputs(context, inputs),
  });
}

function costInputs(context: SagaContext, inputs: ForecastInputs): CostInputs {
  const { sample, sizes } = inputs;
  const lazy_pages = Math.round(sample.present_bytes / PAGE_BYTES);
  const present_pages = Math.max(Math.round(sizes.state_bytes / PAGE_BYTES), lazy_pages);
  return {
    situation: {
      processes: inputs.processes,
      present_pages,
      eager_pages: present_pages - lazy_pages,
      tracker: inputs.tracker,
      file_change_bytes_s: 0,
      costs: learntCosts(context, inputs.engine),
    },
    link: { bytes_s: linkTo(context, inputs.destination), rtt_ms: inputs.rtt_ms, path_bytes_s: PATH_BYTES_S },
    zero_share: sample.zero_share,
    compress_ratio: sample.compress_ratio,
    dirty: predictDirty(looksOf(sample)),
    file_bytes: sizes.file_bytes,
  };
}

/** The sample's looks at what the service writes, as observations of all of its pages. */
export function looksOf(sample: MemorySample): DirtyObservation[] {
  const present_pages = Math.round(sample.present_bytes / PAGE_BYTES);
  return sample.changed.map(({ elapsed_ms, bytes }) => ({
    interval_ms: elapsed_ms,
    changed_pages: Math.round(bytes / PAGE_BYTES),
    present_pages,
  }));
}

function feasibility(notLazy: string | undefined): Record<Technique, Feasibility> {
  const lazy: Feasibility = notLazy === undefined ? { feasible: true } : { feasible: false, reason: notLazy };
  return { cold: { feasible: true }, 'pre-copy': lazy, 'post-copy': lazy, hybrid: lazy };
}

/** The rows as they leave the agent. */
export function techniqueRows(choice: Choice): TechniqueRow[] {
  return choice.rows.map(({ technique, feasible, note, dependent, prediction }) => ({
    technique,
    feasible,
    note,
    dependent,
    downtime_ms: prediction?.downtime_ms ?? null,
    total_ms: prediction?.total_ms ?? null,
    bytes: prediction?.bytes ?? null,
    degraded_ms: prediction?.degraded_ms ?? null,
  }));
}

/** The prediction of the technique that is used, as it is stored beside the outcome. */
export function predictionOf(
  context: SagaContext,
  inputs: ForecastInputs,
  choice: Choice,
  technique: Technique,
  chosen: boolean,
): StoredPrediction | undefined {
  const prediction = choice.rows.find((row) => row.technique === technique)?.prediction ?? undefined;
  if (prediction === undefined) return undefined;
  return storedPrediction(prediction, costInputs(context, inputs), inputs.goals, { chosen, why: choice.why });
}

/**
 * What a migration that has handed over showed of the fixed costs. Where the service ran before its memory had arrived,
 * the downtime is nothing but dump and restore.
 */
export function whatItTaught(context: SagaContext, row: Row): ObservedCosts {
  const { steps, downtime_ms } = context.journal.view(row.id);
  const prediction = predictionSchema.safeParse(row.data['prediction']);
  if (!prediction.success) return {};
  const { processes, present_pages, costs } = prediction.data.inputs;
  const sum = (...names: string[]) =>
    steps.reduce((total, step) => total + (names.includes(step.name) ? step.duration_ms : 0), 0);
  const dump_ms = sum('freezing', 'dumping');
  const frozen =
    runsEarly(planOf(row).technique) && downtime_ms !== null && downtime_ms > dump_ms
      ? { dump_ms, restore_ms: downtime_ms - dump_ms }
      : {};
  const prepare_ms = sum('checking', 'reserving');
  const settle_ms = sum('committed', 'redirecting');
  return observedCosts({ processes, present_pages, prepare_ms, settle_ms, ...frozen }, costs);
}

/** Every prediction of this agent that has an outcome by now. */
export function predictionRecords(journal: Journal): PredictionRecord[] {
  return journal.all().flatMap((row) => {
    if (row.role !== 'source' || row.state !== 'done' || row.data['prediction'] === undefined) return [];
    const prediction = predictionSchema.safeParse(row.data['prediction']);
    if (!prediction.success) return [];
    const total_ms = row.ended_at === null ? null : row.ended_at - row.started_at;
    return [
      { prediction: prediction.data, outcome: { downtime_ms: row.downtime_ms, total_ms, bytes: row.bytes_on_wire } },
    ];
  });
}
