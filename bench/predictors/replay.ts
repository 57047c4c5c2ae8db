import { PAGE_BYTES } from '#src/transfer/pages/model.ts';
import type { DirtyObservation } from '#src/decision/index.ts';
import { differentPages, type Trace } from './trace.ts';

/** One question that a predictor is asked in a migration, and the answer that the trace gives. */
export interface Sample {
  readonly trace: string;
  readonly seen: readonly DirtyObservation[];
  readonly interval_ms: number;
  readonly actual_pages: number;
  /** Pages that the link of this migration carries within the budget of a freeze. */
  readonly budget_pages: number;
}

/** Links on which the whole memory takes this long. */
const FIRST_ROUND_S = [0.5, 1, 2, 4, 8];
const STARTS_EVERY_MS = 2500;
const ROUNDS_MAX = 10;
/** Of the 300 ms of a freeze, what is left for pages. */
const BUDGET_S = 0.15;

/** Every migration that begins at one of several moments over one of several links, replayed on the trace. */
export function replay(trace: Trace): Sample[] {
  const every = Math.round(STARTS_EVERY_MS / trace.window_ms);
  return FIRST_ROUND_S.flatMap((first_s) => {
    const pages_s = trace.present_pages / first_s;
    const samples: Sample[] = [];
    for (let start = 0; start < trace.windows.length; start += every) samples.push(...migration(trace, start, pages_s));
    return samples;
  });
}

function migration(trace: Trace, start: number, pages_s: number): Sample[] {
  const windowsFor = (pages: number) => Math.max(1, Math.round(((pages / pages_s) * 1000) / trace.window_ms));
  const samples: Sample[] = [];
  const seen: DirtyObservation[] = [];
  let begin = start;
  let end = start + windowsFor(trace.present_pages);
  for (let round = 0; round < ROUNDS_MAX && end < trace.windows.length; round += 1) {
    const interval_ms = (end - begin) * trace.window_ms;
    const pages = differentPages(trace, begin, end);
    if (seen.length > 0) {
      const budget_pages = Math.max(1, pages_s * BUDGET_S);
      samples.push({ trace: trace.name, seen: [...seen], interval_ms, actual_pages: pages, budget_pages });
    }
    seen.push({ interval_ms, changed_pages: pages, present_pages: trace.present_pages });
    begin = end;
    end = begin + windowsFor(pages);
  }
  return samples;
}

/** Errors of one page or a few say nothing: they cost no time. */
const FEW_PAGES = 32;

export interface Score {
  /** Relative errors of the predicted pages. */
  readonly median: number;
  readonly p90: number;
  /** Mean absolute error of the logarithm, as a factor: 1.3 = usually 30 % off, whichever way. */
  readonly factor: number;
  /** The same where the round asked for is less than half as long as the one before: the first rounds, which decide. */
  readonly shrinking: number;
  /** Of freezes predicted to fit: the share that would have taken more than 1.2 times the budget. */
  readonly overrun: number;
  /** Of freezes that would have fitted: the share that was not recognised. */
  readonly missed: number;
  readonly mean_error_bytes: number;
}

export function errorOf(predicted: number, actual: number): number {
  return Math.abs(Math.log((predicted + FEW_PAGES) / (actual + FEW_PAGES)));
}

function shrinks({ seen, interval_ms }: Sample): boolean {
  return interval_ms < (seen.at(-1)?.interval_ms ?? 0) / 2;
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);
}

export function score(answers: readonly { sample: Sample; predicted: number }[]): Score {
  const relative = answers
    .map(
      ({ sample, predicted }) => Math.abs(predicted - sample.actual_pages) / Math.max(sample.actual_pages, FEW_PAGES),
    )
    .toSorted((a, b) => a - b);
  const at = (share: number) => relative[Math.min(relative.length - 1, Math.floor(relative.length * share))] ?? 0;
  const fits = answers.filter(({ sample, predicted }) => predicted <= sample.budget_pages);
  const would = answers.filter(({ sample }) => sample.actual_pages <= sample.budget_pages);
  const factor = (some: typeof answers) =>
    Math.exp(mean(some.map(({ sample, predicted }) => errorOf(predicted, sample.actual_pages))));
  return {
    median: at(0.5),
    p90: at(0.9),
    factor: factor(answers),
    shrinking: factor(answers.filter(({ sample }) => shrinks(sample))),
    overrun: mean(fits.map(({ sample }) => (sample.actual_pages > 1.2 * sample.budget_pages ? 1 : 0))),
    missed: mean(would.map(({ sample, predicted }) => (predicted > sample.budget_pages ? 1 : 0))),
    mean_error_bytes:
      mean(answers.map(({ sample, predicted }) => Math.abs(predicted - sample.actual_pages))) * PAGE_BYTES,
  };
}
