import type { Migration } from '#src/coordination/schema.ts';
import {
  type DestinationState,
  isDestinationState,
  isSourceState,
  type SourceState,
} from '#src/coordination/states.ts';

/**
 * The saga's steps, put together so that all approaches can be shown with the same ones. At container-level the hosts'
 * agents only follow what the agents in the two capsules do (`nested`), and the capsule at the source is gone afterwards;
 * so the time of that step is told by the steps of the agent in the capsule at the destination.
 */
export const PHASES = [
  'checking',
  'reserving',
  'copying',
  'dumping',
  'restoring',
  'committing',
  'filling',
  'removing',
  'the rest',
] as const;
export type Phase = (typeof PHASES)[number];
export type Phases = Record<Phase, number>;

const AT_SOURCE: Readonly<Record<SourceState, Phase>> = {
  planned: 'checking',
  checking: 'checking',
  reserving: 'reserving',
  copying: 'copying',
  holding: 'dumping',
  freezing: 'dumping',
  dumping: 'dumping',
  restoring: 'restoring',
  committing: 'committing',
  committed: 'committing',
  redirecting: 'filling',
  filling: 'filling',
  nested: 'the rest',
  removing: 'removing',
  done: 'the rest',
  aborting: 'the rest',
  aborted: 'the rest',
};

/** What the source does while the destination is in a state. */
const AT_DESTINATION: Readonly<Record<DestinationState, Phase>> = {
  reserving: 'reserving',
  reserved: 'copying',
  receiving: 'dumping',
  received: 'dumping',
  restoring: 'restoring',
  restored: 'restoring',
  committing: 'committing',
  active: 'committing',
  settling: 'filling',
  done: 'the rest',
  aborting: 'the rest',
  aborted: 'the rest',
};

type Told = Pick<Migration, 'role' | 'steps'>;

function phaseOf(role: Told['role'], step: string): Phase {
  if (role === 'source') return isSourceState(step) ? AT_SOURCE[step] : 'the rest';
  return isDestinationState(step) ? AT_DESTINATION[step] : 'the rest';
}

/**
 * Milliseconds of each phase. `prepared_ms` is what was done before the command (at service-level the container that
 * receives is started and paired), `total_ms` all of it: what no step accounts for is the rest.
 */
export function phasesOf(outer: Told, inner: Told | null, prepared_ms: number, total_ms: number): Phases {
  const phases: Phases = {
    checking: 0,
    reserving: prepared_ms,
    copying: 0,
    dumping: 0,
    restoring: 0,
    committing: 0,
    filling: 0,
    removing: 0,
    'the rest': 0,
  };
  for (const { role, steps } of inner === null ? [outer] : [outer, inner]) {
    for (const { name, duration_ms } of steps) {
      const phase = phaseOf(role, name);
      if (phase !== 'the rest') phases[phase] += duration_ms;
    }
  }
  const told = Object.values(phases).reduce((sum, each) => sum + each, 0);
  return { ...phases, 'the rest': Math.max(0, total_ms - told) };
}

/** When it was certainly frozen, if that is known: when its restore began. */
export function frozenAt(moved: Pick<Migration, 'started_at' | 'steps'>): number | undefined {
  const restoring = moved.steps.find((step) => step.name === 'restoring');
  return restoring === undefined ? undefined : moved.started_at + restoring.start_ms;
}
