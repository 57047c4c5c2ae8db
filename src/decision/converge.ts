import { PAGE_BYTES } from '#src/transfer/pages/model.ts';
import { freezeParts, type Link, PATH_BYTES_S, scanTime_ms, type Situation, transferTime_ms } from './freeze.ts';
import type { Goals, RoundMeasurement } from './model.ts';
import { type DirtyModel, type DirtyObservation, dirtyModelOf, shareBefore } from './predictor.ts';
import { sayDuration, sayShare } from './words.ts';

/** Shares of its usual CPU time that a service is left with, one after the other. */
export const THROTTLE_STEPS = [0.8, 0.6, 0.4, 0.2, 0.1] as const;

export interface Rehearsed {
  /** What is predicted when the service is frozen now. */
  readonly downtime_ms: number;
  readonly dirty_pages: number;
  /** The same after one more round, and how long that round takes. */
  readonly next_downtime_ms: number;
  readonly next_dirty_pages: number;
  readonly next_round_ms: number;
  /** With nothing left to send. */
  readonly floor_ms: number;
}

export type Decision = { readonly why: string; readonly predicted: Rehearsed } & (
  | { readonly action: 'continue' | 'freeze' | 'post-copy' | 'stop' }
  | { readonly action: 'throttle'; readonly cpu_share: number }
);

export interface Progress {
  readonly technique: 'pre-copy' | 'hybrid';
  readonly rounds: readonly RoundMeasurement[];
  /** What the service has now; 1 = not throttled. */
  readonly cpu_share: number;
  readonly situation: Omit<Situation, 'present_pages'>;
  /** Other looks at what the service writes, before the rounds: a sample, or a scan that was not sent. */
  readonly prior?: readonly DirtyObservation[];
}

/** A budget that nothing can meet asks for about the least there is: this much more is the same. */
export const ABOUT_LEAST = 1.25;
/** From the end of a round until the service stands still. */
const FREEZE_LEAD_MS = 20;
/** Another round must promise to save this share of the downtime, or of the dirty pages. */
const GAIN_MIN = 0.1;
/** When the freeze fits already, only a round as short as this one is worth it. */
const POLISH_ROUND_MS_MAX = 500;
/** Of hybrid's dirty pages: they cost degraded time, not downtime. */
const HYBRID_GAIN_MIN = 0.3;
/** So few that the destination has them while it restores. */
const HYBRID_LEFT_MS = 50;
/** Of the time that the rounds have taken: what is left travels anyway, before the freeze or after it. */
const HYBRID_LEFT_SHARE = 0.02;

/** What to do after the latest round. */
export function decide(progress: Progress, goals: Goals): Decision {
  const predicted = rehearse(progress);
  const last = progress.rounds.at(-1);
  if (last === undefined) return { action: 'continue', why: 'Nothing was sent yet.', predicted };
  const { downtime_ms, floor_ms } = predicted;
  const settled =
    progress.technique === 'pre-copy' &&
    (downtime_ms <= budgetOf(predicted, goals) || (floor_ms > goals.max_downtime_ms && goals.on_stall === 'stop'));
  if (!knows(progress) && progress.rounds.length < goals.max_rounds && !settled) {
    return { action: 'continue', why: 'How much the service writes shows in the next round.', predicted };
  }
  return progress.technique === 'hybrid'
    ? decideHybrid(progress, goals, predicted)
    : decidePreCopy(progress, goals, predicted);
}

function decidePreCopy(progress: Progress, goals: Goals, predicted: Rehearsed): Decision {
  const { downtime_ms, next_downtime_ms, next_round_ms, floor_ms } = predicted;
  const limit_ms = budgetOf(predicted, goals);
  const left = goals.max_rounds - progress.rounds.length;
  const gain = 1 - next_downtime_ms / downtime_ms;
  const allowed = `${sayDuration(goals.max_downtime_ms)} allowed`;
  const reachable = limit_ms === goals.max_downtime_ms;
  const atLeast = `the ${allowed} cannot be met: even with nothing left to send, the freeze takes ${sayDuration(floor_ms)}`;
  if (!reachable && goals.on_stall === 'stop') {
    return { action: 'stop', why: `T${atLeast.slice(1)}; the service stays.`, predicted };
  }
  if (downtime_ms <= limit_ms) {
    const polish = left > 0 && gain >= GAIN_MIN && next_round_ms <= POLISH_ROUND_MS_MAX && shrinks(progress.rounds);
    if (polish) {
      const why = `The freeze fits, and a round of ${sayDuration(next_round_ms)} makes it ${sayShare(gain)} shorter.`;
      return { action: 'continue', why, predicted };
    }
    const why = reachable
      ? `The predicted freeze of ${sayDuration(downtime_ms)} fits the ${allowed}.`
      : `The predicted freeze of ${sayDuration(downtime_ms)} is about as short as it gets: ${atLeast}.`;
    return { action: 'freeze', why, predicted };
  }
  if (left <= 0) return onStall(progress, goals, predicted, `The limit of ${goals.max_rounds} rounds is reached`);
  if (stalled(progress, predicted)) {
    return onStall(progress, goals, predicted, 'Rounds no longer make the freeze shorter');
  }
  const why = `A freeze now would take ${sayDuration(downtime_ms)}, more than the ${sayDuration(limit_ms)} to be reached.`;
  return { action: 'continue', why, predicted };
}

/** What a freeze may take: what is allowed, or, when nothing can meet that, about the least there is. */
export function budgetOf({ floor_ms }: Rehearsed, goals: Goals): number {
  return floor_ms > goals.max_downtime_ms ? floor_ms * ABOUT_LEAST : goals.max_downtime_ms;
}

function decideHybrid(progress: Progress, goals: Goals, predicted: Rehearsed): Decision {
  const { dirty_pages, next_dirty_pages } = predicted;
  const freeze = (why: string): Decision => ({ action: 'freeze', why, predicted });
  const left_ms = transferTime_ms(dirty_pages, travelRatio(progress.rounds), linkOf(progress.rounds));
  if (progress.rounds.length >= goals.max_rounds) return freeze(`The limit of ${goals.max_rounds} rounds is reached.`);
  const spent_ms = progress.rounds.reduce((sum, { elapsed_ms }) => sum + elapsed_ms, 0);
  if (left_ms <= Math.max(HYBRID_LEFT_MS, HYBRID_LEFT_SHARE * spent_ms)) {
    return freeze('Next to nothing is left to send afterwards.');
  }
  const gain = 1 - next_dirty_pages / dirty_pages;
  if (gain < HYBRID_GAIN_MIN || stalled(progress, predicted)) {
    return freeze(`Another round would not help: what is left travels afterwards, in ${sayDuration(left_ms)}.`);
  }
  return { action: 'continue', why: `Another round leaves ${sayShare(gain)} less to send afterwards.`, predicted };
}

function onStall(progress: Progress, goals: Goals, predicted: Rehearsed, reason: string): Decision {
  const { downtime_ms } = predicted;
  const needed = `a freeze now would take ${sayDuration(downtime_ms)}, and at most ${sayDuration(budgetOf(predicted, goals))} are allowed`;
  if (goals.on_stall === 'post-copy') {
    return {
      action: 'post-copy',
      why: `${reason}: the rest follows once the service runs at the destination.`,
      predicted,
    };
  }
  const share = goals.on_stall === 'throttle' ? nextShare(progress, goals, predicted) : undefined;
  if (share !== undefined) {
    const why = `${reason}: the service is slowed to ${sayShare(share)} of its CPU time, so that it writes less.`;
    return { action: 'throttle', cpu_share: share, why, predicted };
  }
  const tried = goals.on_stall === 'throttle' && progress.cpu_share < 1 ? ', also for the slowed service' : '';
  return { action: 'stop', why: `${reason}${tried}: ${needed}; the service stays.`, predicted };
}

/** The mildest step that is predicted to be enough; the strongest when the rounds run out. */
function nextShare(progress: Progress, goals: Goals, predicted: Rehearsed): number | undefined {
  const left = goals.max_rounds - progress.rounds.length;
  const lower = THROTTLE_STEPS.filter((share) => share < progress.cpu_share);
  if (left <= 0 || lower.length === 0) return undefined;
  if (left <= 2) return lower.at(-1);
  const enough = lower.find((share) => {
    const after = rehearse({ ...progress, cpu_share: share });
    return after.next_downtime_ms <= budgetOf(after, goals) || after.next_dirty_pages < predicted.dirty_pages / 2;
  });
  return enough ?? lower[0];
}

function knows({ rounds, prior }: Progress): boolean {
  return rounds.some((round) => round.interval_ms > 0) || (prior ?? []).length > 0;
}

/** Whether the last round found clearly fewer pages than the one before. */
function shrinks(rounds: readonly RoundMeasurement[]): boolean {
  const [before, last] = rounds.filter((round) => round.interval_ms > 0).slice(-2);
  return before === undefined || last === undefined || last.changed_pages <= before.changed_pages * (1 - GAIN_MIN);
}

/** Whether the dirty set no longer shrinks. Rounds before a change of the throttle say nothing about now. */
export function stalled({ rounds, cpu_share }: Progress, predicted: Rehearsed): boolean {
  const before = rounds.findLastIndex((round, at) => shareBefore(rounds, at) !== cpu_share || round.interval_ms <= 0);
  const pages = rounds.slice(before + 1).map((round) => round.changed_pages);
  const [twoBefore, oneBefore, last] = [pages.at(-3), pages.at(-2), pages.at(-1)];
  if (last === undefined || oneBefore === undefined) return false;
  const worth = 1 - GAIN_MIN;
  if (twoBefore !== undefined && last > twoBefore * worth) return true;
  return last > oneBefore * worth && predicted.next_dirty_pages > predicted.dirty_pages * worth;
}

/** What a freeze now, one after another round, and one with nothing left would cost. */
export function rehearse(progress: Progress): Rehearsed {
  const last = progress.rounds.at(-1);
  const present_pages = last?.present_pages ?? 0;
  // As long as nothing is known, all of it may be written.
  const worst: DirtyModel = { pages: () => present_pages };
  const model = knows(progress) ? dirtyModelOf(progress.rounds, progress.prior) : worst;
  const situation: Situation = { ...progress.situation, present_pages };
  const link = linkOf(progress.rounds);
  const travel_ratio = travelRatio(progress.rounds);
  const written = (interval_ms: number) => model.pages(interval_ms * progress.cpu_share);
  const waits = progress.technique === 'pre-copy';
  const freeze = (pages: number) =>
    freezeParts(situation, link, { pages: waits ? pages : 0, travel_ratio, check: waits }).downtime_ms;
  const elapsed_ms = last?.elapsed_ms ?? 0;
  const dirty_pages = written(elapsed_ms + FREEZE_LEAD_MS);
  const scan_ms = scanTime_ms(situation.tracker, present_pages, situation.costs);
  const next_round_ms = scan_ms + transferTime_ms(written(elapsed_ms), travel_ratio, link);
  const next_dirty_pages = written(next_round_ms + FREEZE_LEAD_MS);
  return {
    downtime_ms: freeze(dirty_pages),
    dirty_pages,
    next_downtime_ms: freeze(next_dirty_pages),
    next_dirty_pages,
    next_round_ms,
    floor_ms: freeze(0),
  };
}

const RECENT_ROUNDS = 3;

/** Rate of the latest rounds, each counting by what it sent: a short round measures badly. */
export function linkOf(rounds: readonly RoundMeasurement[]): Link {
  const recent = rounds.filter((round) => round.link_bytes_s > 0).slice(-RECENT_ROUNDS);
  const bytes = recent.reduce((sum, { sent }) => sum + Math.max(1, sent.wire_bytes), 0);
  const time_s = recent.reduce((sum, { sent, link_bytes_s }) => sum + Math.max(1, sent.wire_bytes) / link_bytes_s, 0);
  return {
    bytes_s: recent.length === 0 ? PATH_BYTES_S : bytes / time_s,
    rtt_ms: rounds.at(-1)?.rtt_ms ?? 0,
    path_bytes_s: PATH_BYTES_S,
  };
}

/** Which share of the bytes of written pages went over the link lately, after elision, references and compression. */
export function travelRatio(rounds: readonly RoundMeasurement[]): number {
  const later = rounds.filter((round) => round.interval_ms > 0 && round.changed_pages > 0).slice(-RECENT_ROUNDS);
  const counted = later.length > 0 ? later : rounds;
  const pages = counted.reduce((sum, round) => sum + round.changed_pages, 0);
  const wire = counted.reduce((sum, round) => sum + round.sent.wire_bytes, 0);
  return pages === 0 ? 1 : Math.min(1.1, wire / (pages * PAGE_BYTES));
}
