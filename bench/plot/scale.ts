/** Axes: where ticks stand, and where a value lies between them. */
export interface Scale {
  readonly min: number;
  readonly max: number;
  readonly ticks: readonly number[];
  /** 0 at `min`, 1 at `max`; what lies outside is held at the edge. */
  place(value: number): number;
}

const TICKS_WANTED = 5;

/** From zero to a round number not below the largest value. */
export function linearScale(values: readonly number[]): Scale {
  const most = Math.max(0, ...values.filter((value) => Number.isFinite(value)));
  const step = niceStep(most === 0 ? 1 : most / TICKS_WANTED);
  const max = Math.max(step, Math.ceil(most / step - 1e-9) * step);
  const ticks = Array.from({ length: Math.round(max / step) + 1 }, (_, at) => round(at * step));
  return { min: 0, max, ticks, place: (value) => clamp(value / max) };
}

/** Powers of ten around all values above zero; when they span little, also twice and five times those. */
export function logScale(values: readonly number[]): Scale {
  const positive = values.filter((value) => value > 0 && Number.isFinite(value));
  const low = Math.floor(Math.log10(Math.min(...positive, Number.MAX_VALUE)) + 1e-9);
  const high = Math.ceil(Math.log10(Math.max(...positive, Number.MIN_VALUE)) - 1e-9);
  if (positive.length === 0) return logBetween(0, 1);
  return logBetween(low, Math.max(high, low + 1));
}

function logBetween(low: number, high: number): Scale {
  const within = high - low <= 2 ? [1, 2, 5] : [1];
  const powers = Array.from({ length: high - low + 1 }, (_, at) => 10 ** (low + at));
  const max = 10 ** high;
  const ticks = powers.flatMap((power) => within.map((factor) => round(power * factor))).filter((tick) => tick <= max);
  return {
    min: 10 ** low,
    max,
    ticks,
    place: (value) => clamp((Math.log10(Math.max(value, 1e-12)) - low) / (high - low)),
  };
}

/** Each value its own tick, evenly apart: for sizes and rates that were chosen, not measured. */
export function pointScale(values: readonly number[]): Scale {
  const ticks = [...new Set(values)].toSorted((a, b) => a - b);
  const place = (value: number): number => {
    const at = ticks.indexOf(value);
    return ticks.length < 2 ? 0.5 : clamp(at / (ticks.length - 1));
  };
  return { min: ticks[0] ?? 0, max: ticks.at(-1) ?? 0, ticks, place };
}

function niceStep(least: number): number {
  const power = 10 ** Math.floor(Math.log10(least));
  const factor = [1, 2, 2.5, 5, 10].find((each) => each * power >= least - 1e-12) ?? 10;
  return factor * power;
}

function clamp(value: number): number {
  return Math.min(1, Math.max(0, value));
}

function round(value: number): number {
  return Number(value.toPrecision(10));
}

/** A tick's number, without digits that say nothing. */
export function tickText(value: number): string {
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential();
  return Number(value.toPrecision(4)).toLocaleString('en-US', { maximumFractionDigits: 4 });
}
