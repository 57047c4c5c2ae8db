import {
  decide,
  type Decision,
  type DirtyObservation,
  type Goals,
  outlook,
  predictionSchema,
  priorOf,
  type Progress,
  type RoundMeasurement,
} from '#src/decision/index.ts';
import { z } from 'zod';
import { UmsError } from '#src/telemetry/errors.ts';
import { PAGE_BYTES } from '#src/transfer/pages/model.ts';
import type { SagaContext } from '../context.ts';
import { learntCosts } from '../forecast.ts';
import type { Row } from '../journal.ts';
import { planOf } from '../plan.ts';
import { TakenPages } from '../sample.ts';
import type { MovingMemory } from './moving-memory.ts';

export interface RoundsWatcher {
  /** A round has nearly ended, and as it looks the freeze follows. Resolves when all is ready for it. */
  nearEnd: () => Promise<void>;
  /** It did not follow: awaited before the next round. */
  again: () => Promise<void>;
}

/**
 * Copies memory in rounds while the service runs, until freezing it is worth it: each round copies what was written
 * during the one before. The policy decides after every round, and every decision is told with its reason.
 */
export async function copyRounds(
  context: SagaContext,
  row: Row,
  signal: AbortSignal,
  moving: MovingMemory,
  predicted: Promise<void>,
  watcher: RoundsWatcher,
): Promise<void> {
  const goals = goalsOf(row);
  const rounds: RoundMeasurement[] = [];
  const costs = learntCosts(context, row.engine);
  let cpu_share = 1;
  const technique = planOf(row).technique === 'hybrid' ? 'hybrid' : 'pre-copy';
  // Both read all over the memory, so they take turns.
  const first = new FirstRoundLook(
    predicted.then(() => context.driver(row.engine).processes(row.handle)),
    signal,
  );
  const progressAfter = (measured: RoundMeasurement): Progress => {
    // What was seen of the service before comes while the first round is on its way.
    const now = context.journal.get(row.id);
    return {
      technique,
      rounds: [...rounds, measured],
      cpu_share,
      prior: priorOf(looksSchema.parse(now.data['looks'] ?? []), first.seen),
      situation: {
        processes: moving.processes,
        eager_pages: eagerPages(now),
        tracker: moving.trackerKind,
        file_change_bytes_s: 0,
        costs,
      },
    };
  };
  let foreseeing: Promise<Decision | undefined> | undefined;
  const nearEnd = async (measured: RoundMeasurement): Promise<boolean> => {
    foreseeing = first.look().then(async () => {
      const decision = decide(progressAfter(measured), goals);
      if (decision.action !== 'freeze' && decision.action !== 'post-copy') return undefined;
      await watcher.nearEnd();
      return decision;
    });
    return (await foreseeing)?.action === 'freeze';
  };
  try {
    // The policy ends by itself at max_rounds; this bound is for a policy that does not.
    for (let at = 0; at <= goals.max_rounds; at += 1) {
      // Without memory that comes later, everything must have arrived before the freeze. Of a later round, pages all over the
      // memory would be left, and to tell which those are would take longer than it saves, while the service stands still.
      const mayCut = technique === 'hybrid' && at === 0;
      const { measured, isCut } = await moving.round(at, cpu_share, signal, { nearEnd, mayCut });
      const [, foreseen] = await Promise.all([predicted, foreseeing]);
      foreseeing = undefined;
      if (at === 0) {
        await first.look();
        await first.close();
      }
      const progress = progressAfter(measured);
      rounds.push(measured);
      const decision = isCut && foreseen !== undefined ? foreseen : decide(progress, goals);
      tell(context, row, { ...measured, isCut }, decision, outlook(progress, goals).remaining_ms);
      if (decision.action === 'freeze') return;
      if (decision.action === 'stop') throw stalledFor(row, decision.why);
      if (decision.action === 'post-copy') {
        context.journal.merge(row.id, { plan: { ...planOf(row), technique: 'hybrid', why: decision.why } });
        return;
      }
      await watcher.again();
      if (decision.action === 'throttle') {
        cpu_share = decision.cpu_share;
        if (!(await context.driver(row.engine).throttle(row.handle, cpu_share))) {
          throw stalledFor(row, 'Its control group has no control over processor time, so it cannot be slowed.');
        }
      }
    }
  } finally {
    await Promise.allSettled([foreseeing, first.close()]);
  }
}

/**
 * What the service writes while the first round is on its way. The looks of the check last a tenth of a second: of a
 * program that writes once a second they may see nothing, and the round may take minutes.
 */
class FirstRoundLook {
  readonly #taking: Promise<TakenPages>;
  #taken: TakenPages | undefined;
  seen: DirtyObservation | undefined;

  constructor(pids: Promise<readonly number[]>, signal: AbortSignal) {
    this.#taking = pids.then((known) => TakenPages.take(known, signal));
    // Whoever closes it hears of a failure.
    this.#taking.then((taken) => (this.#taken = taken)).catch(() => undefined);
  }

  /** Looks, if there is anything yet to compare with. */
  async look(): Promise<void> {
    if (this.#taken === undefined) return;
    const { elapsed_ms, bytes } = await this.#taken.changed();
    this.seen = {
      interval_ms: elapsed_ms,
      changed_pages: Math.round(bytes / PAGE_BYTES),
      present_pages: Math.round(this.#taken.present_bytes / PAGE_BYTES),
    };
  }

  /** What was seen stays. */
  async close(): Promise<void> {
    const taken = await this.#taking;
    this.#taken = undefined;
    taken.close();
  }
}

export function goalsOf(row: Row): Goals {
  const { maxDowntime_ms, maxRounds, onStall } = row.options;
  return { max_downtime_ms: maxDowntime_ms, max_rounds: maxRounds, on_stall: onStall };
}

const looksSchema = z.array(z.object({ interval_ms: z.number(), changed_pages: z.int(), present_pages: z.int() }));

/** Pages that CRIU itself carries, as the check saw them. */
function eagerPages(row: Row): number {
  const prediction = predictionSchema.safeParse(row.data['prediction']);
  return prediction.success ? prediction.data.inputs.eager_pages : 0;
}

function tell(
  context: SagaContext,
  row: Row,
  measured: RoundMeasurement & { isCut: boolean },
  decision: Decision,
  remaining_ms: number,
): void {
  const { downtime_ms, dirty_pages } = decision.predicted;
  const elapsed_ms = Math.max(measured.elapsed_ms, 1);
  context.journal.emit(row.id, {
    event: 'round',
    round: measured.round + 1,
    elapsed_ms,
    present_bytes: bytes(measured.present_pages),
    changed_bytes: bytes(measured.changed_pages),
    wire_bytes: Math.round(measured.sent.wire_bytes),
    left_bytes: measured.isCut ? leftOf(measured) : 0,
    link_bytes_s: measured.link_bytes_s,
    dirty_bytes_s: (bytes(dirty_pages) / elapsed_ms) * 1000,
    predicted_downtime_ms: downtime_ms,
    predicted_total_ms: Date.now() - row.started_at + remaining_ms,
    decision: decision.action,
    why: decision.why,
  });
}

function leftOf({ changed_pages, sent }: RoundMeasurement): number {
  return Math.max(0, bytes(changed_pages) - sent.zero_bytes - sent.reference_bytes - sent.data_bytes);
}

function bytes(pages: number): number {
  return Math.round(pages * PAGE_BYTES);
}

function stalledFor(row: Row, why: string): UmsError {
  return new UmsError('UMS_E_STALLED', {
    message: `${row.service} changes its memory faster than it can be copied. ${why}`,
    fault: 'service',
    state: `${row.service} runs on ${row.source} as before.`,
    mend: 'Use --technique hybrid or post-copy, a larger --max-downtime, or move it when it does less.',
  });
}
