import { PAGE_BYTES } from '#src/transfer/pages/model.ts';
import { type Decision, decide } from './converge.ts';
import { DEFAULT_COSTS } from './costs.ts';
import { freezeParts, type Link, scanTime_ms, type Situation, transferTime_ms } from './freeze.ts';
import type { Goals, RoundMeasurement } from './model.ts';
import type { DirtyModel } from './predictor.ts';

/** A service with a working set that it writes at random, and a slow trickle over the rest of its memory. */
export interface Service {
  readonly present_pages: number;
  readonly hot_share: number;
  readonly hot_pages_s: number;
  readonly cold_pages_s: number;
}

/** Expected number of different pages when `rate` of `pages` pages are written a second, at random. */
function different(pages: number, rate: number, interval_ms: number): number {
  return pages <= 0 ? 0 : pages * (1 - Math.exp((-rate * interval_ms) / 1000 / pages));
}

export function dirtyOf(service: Service): DirtyModel {
  const hot = service.present_pages * service.hot_share;
  const cold = service.present_pages - hot;
  return {
    pages: (interval_ms) =>
      different(hot, service.hot_pages_s, interval_ms) + different(cold, service.cold_pages_s, interval_ms),
  };
}

export function situationOf(present_pages: number, tracker: Situation['tracker'] = 'written'): Situation {
  return { processes: 1, present_pages, eager_pages: 200, tracker, file_change_bytes_s: 0, costs: DEFAULT_COSTS };
}

export interface Simulated {
  readonly rounds: readonly RoundMeasurement[];
  readonly decisions: readonly Decision[];
  /** What a freeze after the last round really costs. */
  readonly downtime_ms: number;
}

/** Plays a migration: the policy decides, the simulated service and link answer. `jitter` shakes what is measured. */
export function simulate(
  technique: 'pre-copy' | 'hybrid',
  service: Service,
  link: Link,
  goals: Goals,
  jitter: () => number = () => 1,
): Simulated {
  const truth = dirtyOf(service);
  const situation = situationOf(service.present_pages);
  const rounds: RoundMeasurement[] = [];
  const decisions: Decision[] = [];
  let cpu_share = 1;
  let shareBefore = 1;
  for (let round = 0; round <= goals.max_rounds + 1; round += 1) {
    const interval_ms = rounds.at(-1)?.elapsed_ms ?? 0;
    const changed_pages =
      round === 0 ? service.present_pages : Math.round(truth.pages(interval_ms * shareBefore) * jitter());
    const scan_ms = scanTime_ms(situation.tracker, service.present_pages, situation.costs);
    const elapsed_ms = scan_ms + transferTime_ms(changed_pages, 1, link) * jitter();
    const bytes = changed_pages * PAGE_BYTES;
    rounds.push({
      round,
      interval_ms,
      elapsed_ms,
      present_pages: service.present_pages,
      changed_pages,
      sent: { zero_bytes: 0, reference_bytes: 0, data_bytes: bytes, wire_bytes: bytes },
      link_bytes_s: link.bytes_s * jitter(),
      rtt_ms: link.rtt_ms,
      scan_ms,
      cpu_share,
    });
    shareBefore = cpu_share;
    const decision = decide({ technique, rounds, cpu_share, situation }, goals);
    decisions.push(decision);
    if (decision.action === 'throttle') cpu_share = decision.cpu_share;
    else if (decision.action !== 'continue') break;
  }
  const waits = technique === 'pre-copy' && decisions.at(-1)?.action !== 'post-copy';
  const left = truth.pages(((rounds.at(-1)?.elapsed_ms ?? 0) + 20) * cpu_share);
  const freeze = freezeParts(situation, link, { pages: waits ? left : 0, travel_ratio: 1, check: waits });
  return { rounds, decisions, downtime_ms: freeze.downtime_ms };
}
