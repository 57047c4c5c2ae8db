import type { RoundMeasurement } from './model.ts';

/** How many different pages were written in some time. */
export interface DirtyObservation {
  readonly interval_ms: number;
  readonly changed_pages: number;
  readonly present_pages: number;
}

/** Says how many different pages will be written in a time to come. */
export interface DirtyModel {
  pages(interval_ms: number): number;
}

/** Makes a model of what was seen, oldest first. */
export type Predictor = (seen: readonly DirtyObservation[]) => DirtyModel;

export interface PowerLaw {
  /** What is assumed of a program of which only one interval was seen. */
  readonly exponent: number;
  /** How much that counts, in pairs of observations whose lengths differ by a factor of e. */
  readonly prior: number;
  /** An observation counts this much of the one after it. */
  readonly memory: number;
}

/** Chosen by `ums bench predictors` on recorded programs; docs/design-decisions.md says what else was tried. */
const CHOSEN: PowerLaw = { exponent: 0.7, prior: 0.5, memory: 0.6 };
const INTERVAL_MS_MIN = 1;

/**
 * Programs write the same pages again and again, so the number of different ones grows slower than time: as a power of
 * it, with an exponent between 0 (a working set that is written all the time) and 1 (no page twice). The exponent is
 * fitted to what was seen, drawn towards a prior, and recent observations count most.
 */
export function powerLaw({ exponent, prior, memory }: PowerLaw): Predictor {
  return (seen) => {
    const last = seen.at(-1);
    if (last === undefined) return { pages: () => 0 };
    const points = seen.map(({ interval_ms, changed_pages }, index) => ({
      x: Math.log(Math.max(interval_ms, INTERVAL_MS_MIN)),
      y: Math.log(Math.max(changed_pages, 1)),
      weight: memory ** (seen.length - 1 - index),
    }));
    const total = points.reduce((sum, { weight }) => sum + weight, 0);
    const meanX = points.reduce((sum, { x, weight }) => sum + x * weight, 0) / total;
    const meanY = points.reduce((sum, { y, weight }) => sum + y * weight, 0) / total;
    let above = prior * exponent;
    let below = prior;
    for (const { x, y, weight } of points) {
      above += weight * (x - meanX) * (y - meanY);
      below += weight * (x - meanX) ** 2;
    }
    const slope = Math.min(1, Math.max(0, above / below));
    return {
      pages: (interval_ms) => {
        if (interval_ms <= 0 || last.changed_pages === 0) return 0;
        const x = Math.log(Math.max(interval_ms, INTERVAL_MS_MIN));
        return Math.min(last.present_pages, Math.exp(meanY + slope * (x - meanX)));
      },
    };
  };
}

/**
 * What is known before any round has told: looks at the running service, and one that lasted longer, if there is one. A look
 * in which nothing was written says nothing of a time many times as long, so beside the longer one it does not count.
 */
export function priorOf(
  looks: readonly DirtyObservation[],
  longer: DirtyObservation | undefined,
): readonly DirtyObservation[] {
  if (longer === undefined || looks.some(({ interval_ms }) => interval_ms >= longer.interval_ms)) return looks;
  return [...looks.filter(({ changed_pages }) => changed_pages > 0), longer];
}

export const predictDirty: Predictor = powerLaw(CHOSEN);

/**
 * The dirty model after these rounds. A throttled service writes as much in a second as it would in `cpu_share` seconds
 * at full speed, so the model's time is time at full speed: ask it for `interval_ms * cpu_share`.
 */
export function dirtyModelOf(rounds: readonly RoundMeasurement[], prior: readonly DirtyObservation[] = []): DirtyModel {
  const seen = rounds.flatMap(({ interval_ms, changed_pages, present_pages }, at) => {
    const effective_ms = interval_ms * shareBefore(rounds, at);
    return effective_ms > 0 ? [{ interval_ms: effective_ms, changed_pages, present_pages }] : [];
  });
  return predictDirty([...prior, ...seen]);
}

/** What the service had of its CPU time in the interval that a round looked back on: it was set during the one before. */
export function shareBefore(rounds: readonly RoundMeasurement[], at: number): number {
  return rounds[at - 1]?.cpu_share ?? 1;
}
