import {
  type DirtyModel,
  type DirtyObservation,
  type PowerLaw,
  powerLaw,
  predictDirty,
  type Predictor,
} from '#src/decision/index.ts';
import { growForest } from './forest.ts';
import { errorOf, type Sample } from './replay.ts';

/** A way to predict, learnt or tuned on traces other than the one it is judged on. */
export interface Candidate {
  readonly name: string;
  readonly what: string;
  train(samples: readonly Sample[]): Predictor;
}

const nothing: DirtyModel = { pages: () => 0 };
const rateOf = ({ changed_pages, interval_ms }: DirtyObservation) => changed_pages / interval_ms;
const atMost = (observation: DirtyObservation, pages: number) =>
  Math.max(0, Math.min(observation.present_pages, pages));

/** Tuning looks at one sample in so many: a setting that is best for all is best for these. */
const TUNING_STRIDE = 4;

/** The one of several settings that errs least on these samples. */
function tuned<Setting>(settings: readonly Setting[], make: (setting: Setting) => Predictor) {
  return (all: readonly Sample[]): Predictor => {
    const samples = all.filter((_, index) => index % TUNING_STRIDE === 0);
    const errors = settings.map((setting) => {
      const predictor = make(setting);
      return samples.reduce((sum, { seen, interval_ms, actual_pages }) => {
        return sum + errorOf(predictor(seen).pages(interval_ms), actual_pages);
      }, 0);
    });
    const best = settings[errors.indexOf(Math.min(...errors))];
    if (best === undefined) throw new Error('no setting');
    return make(best);
  };
}

export const lastRate: Candidate = {
  name: 'last-rate',
  what: "the last round's rate goes on",
  train: () => (seen) => {
    const last = seen.at(-1);
    return last === undefined ? nothing : { pages: (interval_ms) => atMost(last, rateOf(last) * interval_ms) };
  },
};

/** Holt's linear trend, over the rates of the rounds. */
export const holt: Candidate = {
  name: 'holt',
  what: 'smoothed rate with a smoothed trend',
  train: tuned(
    [0.3, 0.5, 0.7, 0.9, 1].flatMap((level) => [0, 0.2, 0.5, 0.8].map((trend) => ({ level, trend }))),
    ({ level, trend }) =>
      (seen) => {
        const [first, ...rest] = seen;
        const last = seen.at(-1);
        if (first === undefined || last === undefined) return nothing;
        let rate = rateOf(first);
        let slope = 0;
        for (const each of rest) {
          const before = rate;
          rate = level * rateOf(each) + (1 - level) * (rate + slope);
          slope = trend * (rate - before) + (1 - trend) * slope;
        }
        return { pages: (interval_ms) => atMost(last, Math.max(0, rate + slope) * interval_ms) };
      },
  ),
};

const SETS = 24;

/** A working set written at random: W (1 - exp(-r t / W)). */
export const workingSet: Candidate = {
  name: 'working-set',
  what: 'a working set written at random: W (1 - exp(-r t / W))',
  train: tuned(
    [0.3, 0.6, 0.9].flatMap((memory) => [0, 0.02, 0.1, 0.3].map((penalty) => ({ memory, penalty }))),
    ({ memory, penalty }) =>
      (seen) => {
        const last = seen.at(-1);
        if (last === undefined || last.changed_pages === 0) return nothing;
        const least = Math.max(1, ...seen.map((each) => each.changed_pages)) * 1.02;
        let best = { error: Number.POSITIVE_INFINITY, size: least, rate: 0 };
        for (let step = 0; step <= SETS; step += 1) {
          const size = least * (Math.max(2, last.present_pages / least) * 4) ** (step / SETS);
          const fitted = fitRate(seen, size, memory);
          const error = fitted.error + penalty * (step / SETS);
          if (error < best.error) best = { error, size, rate: fitted.rate };
        }
        const { size, rate } = best;
        return { pages: (interval_ms) => atMost(last, size * (1 - Math.exp((-rate * interval_ms) / size))) };
      },
  ),
};

/** For one size of the set: the rate as a weighted mean of those that explain each round, and how far they are apart. */
function fitRate(seen: readonly DirtyObservation[], size: number, memory: number): { rate: number; error: number } {
  const rates = seen.map((each, index) => ({
    log: Math.log((-size * Math.log(1 - Math.max(each.changed_pages, 0.5) / size)) / each.interval_ms),
    weight: memory ** (seen.length - 1 - index),
  }));
  const total = rates.reduce((sum, { weight }) => sum + weight, 0);
  const mean = rates.reduce((sum, { log, weight }) => sum + log * weight, 0) / total;
  const error = rates.reduce((sum, { log, weight }) => sum + weight * (log - mean) ** 2, 0) / total;
  return { rate: Math.exp(mean), error };
}

const POWERS: readonly PowerLaw[] = [0.5, 0.6, 0.7, 0.8, 0.9].flatMap((exponent) =>
  [0.1, 0.5, 1, 2, 5, 20].flatMap((prior) =>
    [0.05, 0.1, 0.2, 0.4, 0.6, 0.8].map((memory) => ({ exponent, prior, memory })),
  ),
);
export const power: Candidate = {
  name: 'power-law',
  what: 'different pages grow as a power of time, tuned on the other traces',
  train: tuned(POWERS, powerLaw),
};

const STATES = 24;
const LEAST_RATE = 1e-8;

/** Rates as shares of the memory a millisecond, in classes of a factor of two. */
function stateOf(observation: DirtyObservation): number {
  const rate = Math.max(LEAST_RATE, rateOf(observation) / observation.present_pages);
  return Math.min(STATES - 1, Math.max(0, Math.round(Math.log2(rate / LEAST_RATE))));
}

export const markov: Candidate = {
  name: 'markov',
  what: 'a Markov chain over classes of rates',
  train: (samples) => {
    const counts = Array.from({ length: STATES }, () => Array.from({ length: STATES }, () => 0));
    for (const { seen, interval_ms, actual_pages } of samples) {
      const last = seen.at(-1);
      if (last === undefined) continue;
      const row = counts[stateOf(last)];
      const next = stateOf({ interval_ms, changed_pages: actual_pages, present_pages: last.present_pages });
      if (row !== undefined) row[next] = (row[next] ?? 0) + 1;
    }
    return (seen) => {
      const last = seen.at(-1);
      if (last === undefined) return nothing;
      const row = counts[stateOf(last)] ?? [];
      const total = row.reduce((sum, count) => sum + count, 0);
      const jump = row.reduce((sum, count, state) => sum + count * (state - stateOf(last)), 0);
      const factor = total === 0 ? 1 : 2 ** (jump / total);
      return { pages: (interval_ms) => atMost(last, rateOf(last) * factor * interval_ms) };
    };
  },
};

function log(value: number): number {
  return Math.log(Math.max(1e-9, value));
}

function features(seen: readonly DirtyObservation[], interval_ms: number): number[] {
  const last = seen.at(-1);
  if (last === undefined) return [];
  const before = seen.at(-2) ?? last;
  return [
    log(interval_ms / last.interval_ms),
    log(interval_ms),
    log(rateOf(last) / last.present_pages),
    log((rateOf(last) + 1e-6) / (rateOf(before) + 1e-6)),
    log(last.interval_ms / before.interval_ms),
    last.changed_pages / last.present_pages,
    seen.length,
  ];
}

export const forest: Candidate = {
  name: 'forest',
  what: 'a random forest over the last two rounds and the interval asked for',
  train: (samples) => {
    const predict = growForest(
      samples.map(({ seen, interval_ms, actual_pages }) => {
        const usual = predictLast(seen, interval_ms);
        return { features: features(seen, interval_ms), target: Math.log((actual_pages + 32) / (usual + 32)) };
      }),
    );
    return (seen) => {
      const last = seen.at(-1);
      if (last === undefined) return nothing;
      return {
        pages: (interval_ms) => {
          const factor = Math.exp(predict(features(seen, interval_ms)));
          return atMost(last, (predictLast(seen, interval_ms) + 32) * factor - 32);
        },
      };
    };
  },
};

function predictLast(seen: readonly DirtyObservation[], interval_ms: number): number {
  return lastRate.train([])(seen).pages(interval_ms);
}

export const shipped: Candidate = {
  name: 'shipped',
  what: 'what src/decision uses, as it is',
  train: () => predictDirty,
};

export const CANDIDATES: readonly Candidate[] = [lastRate, holt, workingSet, power, markov, forest, shipped];
