import { PAGE_BYTES } from '#src/transfer/pages/model.ts';
import { decide, type Decision, linkOf, type Progress, travelRatio } from './converge.ts';
import { type FreezeParts, freezeParts, type Link, scanTime_ms, type Situation, transferTime_ms } from './freeze.ts';
import type { Goals, RoundMeasurement, SentBytes, Technique } from './model.ts';
import { type DirtyModel, type DirtyObservation, dirtyModelOf } from './predictor.ts';

/** All that a prediction before the start is made of. */
export interface CostInputs {
  readonly situation: Situation;
  readonly link: Link;
  /** Share of the present pages that hold only zeros, and which share of the others' bytes is left by compression. */
  readonly zero_share: number;
  readonly compress_ratio: number;
  readonly dirty: DirtyModel;
  readonly file_bytes: number;
}

export interface Prediction {
  readonly technique: Technique;
  readonly downtime_ms: number;
  readonly total_ms: number;
  /** On the wire, memory and files. */
  readonly bytes: number;
  /** How long the service waits for some of its memory after it runs again. */
  readonly degraded_ms: number;
  readonly rounds: number;
  /** The smallest share of its CPU time that it is left with on the way: 1 = it is not slowed. */
  readonly cpu_share: number;
  /** How the rounds end, and why: only of pre-copy and hybrid. */
  readonly ends?: { readonly action: Decision['action']; readonly why: string };
  readonly freeze: FreezeParts;
}

export function predict(technique: Technique, inputs: CostInputs, goals: Goals): Prediction {
  switch (technique) {
    case 'cold':
    case 'post-copy':
      return withoutRounds(technique, inputs);
    case 'pre-copy':
    case 'hybrid':
      return withRounds(technique, inputs, goals);
  }
}

/** Of the bytes of the memory as a whole, those that travel. */
function memoryRatio({ zero_share, compress_ratio }: CostInputs): number {
  return (1 - zero_share) * compress_ratio;
}

/** Files are copied once while the service runs, in all techniques. */
function filesTime_ms({ file_bytes, link }: CostInputs): number {
  return file_bytes === 0 ? 0 : link.rtt_ms + (file_bytes / Math.max(link.bytes_s, 1)) * 1000;
}

function withoutRounds(technique: 'cold' | 'post-copy', inputs: CostInputs): Prediction {
  const { situation, link } = inputs;
  const { costs, present_pages, eager_pages } = situation;
  const travel_ratio = memoryRatio(inputs);
  const lazy_pages = Math.max(0, present_pages - eager_pages);
  const cold = technique === 'cold';
  const freeze = freezeParts(situation, link, { pages: cold ? lazy_pages : 0, travel_ratio, check: false });
  const degraded_ms = cold ? 0 : transferTime_ms(lazy_pages, travel_ratio, link);
  return {
    technique,
    downtime_ms: freeze.downtime_ms,
    total_ms: costs.prepare_ms + filesTime_ms(inputs) + freeze.downtime_ms + Math.max(degraded_ms, costs.settle_ms),
    bytes: present_pages * PAGE_BYTES * travel_ratio + inputs.file_bytes,
    degraded_ms,
    rounds: 0,
    cpu_share: 1,
    freeze,
  };
}

interface Rehearsal {
  readonly rounds: readonly RoundMeasurement[];
  readonly last: Decision;
  readonly cpu_share: number;
}

function withRounds(technique: 'pre-copy' | 'hybrid', inputs: CostInputs, goals: Goals): Prediction {
  const { situation, link, compress_ratio } = inputs;
  const { costs } = situation;
  const { rounds, last, cpu_share } = rehearseRounds(technique, inputs, goals);
  const elapsed_ms = rounds.reduce((sum, round) => sum + round.elapsed_ms, 0);
  const wire_bytes = rounds.reduce((sum, round) => sum + round.sent.wire_bytes, 0);
  const waits = technique === 'pre-copy' && last.action !== 'post-copy';
  const left_pages = last.predicted.dirty_pages;
  const freeze = freezeParts(situation, link, {
    pages: waits ? left_pages : 0,
    travel_ratio: compress_ratio,
    check: waits,
  });
  const check_ms = scanTime_ms(situation.tracker, situation.present_pages, costs);
  const degraded_ms = waits ? 0 : check_ms + transferTime_ms(left_pages, compress_ratio, link);
  const before_ms = costs.prepare_ms + filesTime_ms(inputs) + elapsed_ms;
  return {
    technique,
    downtime_ms: freeze.downtime_ms,
    total_ms: before_ms + freeze.downtime_ms + Math.max(degraded_ms, costs.settle_ms),
    bytes: wire_bytes + left_pages * PAGE_BYTES * compress_ratio + inputs.file_bytes,
    degraded_ms,
    rounds: rounds.length,
    cpu_share,
    ends: { action: last.action, why: last.why },
    freeze,
  };
}

/** Plays the rounds through with the very policy that will decide them. */
function rehearseRounds(technique: 'pre-copy' | 'hybrid', inputs: CostInputs, goals: Goals): Rehearsal {
  const { situation, link, zero_share, compress_ratio } = inputs;
  const first = roundOf({ situation, link, cpu_share: 1, rounds: [] }, situation.present_pages, memoryRatio(inputs));
  const rounds = [{ ...first, sent: withoutZeros(first.sent, zero_share) }];
  const prior = [first.elapsed_ms / 8, first.elapsed_ms].map((interval_ms) => observe(inputs, interval_ms));
  return goOn({ technique, rounds, cpu_share: 1, situation, prior }, goals, inputs.dirty, compress_ratio, link);
}

/** The rounds to come, until the policy ends them. */
function goOn(progress: Progress, goals: Goals, dirty: DirtyModel, travel_ratio: number, link: Link): Rehearsal {
  const rounds = [...progress.rounds];
  let { cpu_share } = progress;
  const known = rounds.some((round) => round.interval_ms > 0);
  for (;;) {
    // A prior is what was known before the rounds: those that are played know better.
    const prior = !known && rounds.length > 1 ? [] : (progress.prior ?? []);
    const last = decide({ ...progress, rounds, cpu_share, prior }, goals);
    if (last.action === 'throttle') ({ cpu_share } = last);
    else if (last.action !== 'continue') return { rounds, last, cpu_share };
    if (rounds.length > goals.max_rounds) return { rounds, last, cpu_share };
    const before = rounds.at(-1);
    const present_pages = before?.present_pages ?? 0;
    const pages = Math.round(dirty.pages((before?.elapsed_ms ?? 0) * (before?.cpu_share ?? 1)));
    const situation = { ...progress.situation, present_pages };
    const played = { situation, link, cpu_share, rounds };
    rounds.push(roundOf(played, Math.min(present_pages, pages), travel_ratio));
  }
}

export interface Outlook {
  readonly downtime_ms: number;
  /** From now until the source is no longer needed. */
  readonly remaining_ms: number;
  /** Rounds in all, those that were made included. */
  readonly rounds: number;
  readonly action: Decision['action'];
}

/** How a migration under way is going to end, as far as its rounds so far tell: at least the first. */
export function outlook(progress: Progress, goals: Goals): Outlook {
  const { technique, situation, prior } = progress;
  const link = linkOf(progress.rounds);
  const travel_ratio = travelRatio(progress.rounds);
  const model = dirtyModelOf(progress.rounds, prior);
  const { rounds, last } = goOn(progress, goals, model, travel_ratio, link);
  const to_come_ms = rounds.slice(progress.rounds.length).reduce((sum, round) => sum + round.elapsed_ms, 0);
  const { downtime_ms, dirty_pages } = last.predicted;
  const waits = technique === 'pre-copy' && last.action !== 'post-copy';
  const behind_ms = waits ? 0 : transferTime_ms(dirty_pages, travel_ratio, link);
  const after_ms = Math.max(situation.costs.settle_ms, behind_ms);
  return { downtime_ms, remaining_ms: to_come_ms + downtime_ms + after_ms, rounds: rounds.length, action: last.action };
}

/** What the agent knows of the service by the end of the first round: samples, and a look at what was written in it. */
function observe({ dirty, situation }: CostInputs, interval_ms: number): DirtyObservation {
  const { present_pages } = situation;
  return { interval_ms, changed_pages: dirty.pages(interval_ms), present_pages };
}

interface Played {
  readonly situation: Situation;
  readonly link: Link;
  readonly cpu_share: number;
  readonly rounds: readonly RoundMeasurement[];
}

function roundOf(played: Played, changed_pages: number, travel_ratio: number): RoundMeasurement {
  const { situation, link, cpu_share, rounds } = played;
  const { present_pages } = situation;
  const scan_ms = scanTime_ms(situation.tracker, present_pages, situation.costs);
  const bytes = changed_pages * PAGE_BYTES;
  return {
    round: rounds.length,
    interval_ms: rounds.at(-1)?.elapsed_ms ?? 0,
    elapsed_ms: scan_ms + transferTime_ms(changed_pages, travel_ratio, link),
    present_pages,
    changed_pages,
    sent: { zero_bytes: 0, reference_bytes: 0, data_bytes: bytes, wire_bytes: bytes * travel_ratio },
    link_bytes_s: link.bytes_s,
    rtt_ms: link.rtt_ms,
    scan_ms,
    cpu_share,
  };
}

function withoutZeros(sent: SentBytes, zero_share: number): SentBytes {
  return { ...sent, zero_bytes: sent.data_bytes * zero_share, data_bytes: sent.data_bytes * (1 - zero_share) };
}
