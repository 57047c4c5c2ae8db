import { ABOUT_LEAST } from './converge.ts';
import { type CostInputs, type Prediction, predict } from './cost.ts';
import { type Goals, TECHNIQUES, type Technique } from './model.ts';
import { sayDuration, sayShare } from './words.ts';

export type Feasibility = { readonly feasible: true } | { readonly feasible: false; readonly reason: string };

/** One technique as `ums check` shows it. */
export interface TechniqueRow {
  readonly technique: Technique;
  readonly feasible: boolean;
  /** Why it is not feasible; how its rounds are predicted to end. */
  readonly note: string;
  readonly prediction: Prediction | null;
  /** After the hand-over the service needs both systems until all memory has arrived. */
  readonly dependent: boolean;
}

export interface Choice {
  readonly technique: Technique | undefined;
  /** One sentence for the user. */
  readonly why: string;
  readonly rows: readonly TechniqueRow[];
}

export interface ChoiceInputs {
  readonly feasibility: Readonly<Record<Technique, Feasibility>>;
  readonly costs: CostInputs;
  readonly goals: Goals;
  /** Never leave the service dependent on two systems, whatever the downtime. */
  readonly independent?: boolean;
}

/** Hybrid is not worth its rounds when it leaves nearly as much to fetch as post-copy does, much later. */
const HYBRID_DEGRADED_SHARE = 0.8;

export function choose(inputs: ChoiceInputs): Choice {
  const rows = TECHNIQUES.map((technique) => rowOf(technique, inputs));
  const open = rows.flatMap(({ feasible, prediction }) => (feasible && prediction !== null ? [prediction] : []));
  const independent = inputs.independent ?? false;
  return { ...pick(open, inputs.goals, independent), rows };
}

function rowOf(technique: Technique, { feasibility, costs, goals }: ChoiceInputs): TechniqueRow {
  const dependent = isDependent(technique);
  const verdict = feasibility[technique];
  if (!verdict.feasible) return { technique, feasible: false, note: verdict.reason, prediction: null, dependent };
  const prediction = predict(technique, costs, goals);
  return { technique, feasible: true, note: prediction.ends?.why ?? '', prediction, dependent };
}

export function isDependent(technique: Technique): boolean {
  return technique === 'post-copy' || technique === 'hybrid';
}

interface Picked {
  readonly technique: Technique | undefined;
  readonly why: string;
}

function pick(open: readonly Prediction[], goals: Goals, independent: boolean): Picked {
  const of = (technique: Technique) => open.find((each) => each.technique === technique);
  const [cold, precopy] = [of('cold'), of('pre-copy')];
  const moving = open.filter(({ ends }) => ends?.action !== 'stop');
  const least_ms = Math.min(...moving.map((each) => each.downtime_ms));
  const within = goals.max_downtime_ms >= least_ms;
  const limit_ms = within ? goals.max_downtime_ms : least_ms * ABOUT_LEAST;
  const budget = sayDuration(goals.max_downtime_ms);
  const fits = within
    ? `fits the ${budget} allowed`
    : `is about as short as it gets here, though ${budget} are allowed`;
  if (cold !== undefined && cold.downtime_ms <= limit_ms) {
    return { technique: 'cold', why: `Cold: its downtime of about ${sayDuration(cold.downtime_ms)} ${fits}.` };
  }
  if (precopy?.ends?.action === 'freeze' && precopy.cpu_share === 1 && precopy.downtime_ms <= limit_ms) {
    const why = `Pre-copy: after ${sayRounds(precopy.rounds)} its downtime of about ${sayDuration(precopy.downtime_ms)} ${fits}, and the service never depends on both systems.`;
    return { technique: 'pre-copy', why };
  }
  const lazy = independent ? undefined : betterLazy(of('post-copy'), of('hybrid'));
  if (lazy !== undefined) return { technique: lazy.technique, why: whyLazy(lazy, precopy, goals) };
  return leastOf(moving.filter(({ technique, ends }) => !isDependent(technique) && ends?.action !== 'post-copy'));
}

/** What is left when nothing fits and the service may not depend on two systems. */
function leastOf(open: readonly Prediction[]): Picked {
  const least = open.toSorted((a, b) => a.downtime_ms - b.downtime_ms)[0];
  if (least === undefined) return { technique: undefined, why: 'No technique is possible between these systems.' };
  const name = least.technique === 'cold' ? 'Cold' : 'Pre-copy';
  const slowed = least.cpu_share < 1 ? `, with the service slowed to ${sayShare(least.cpu_share)} meanwhile` : '';
  const why = `${name}: of what is possible here it has the least downtime, about ${sayDuration(least.downtime_ms)}${slowed}.`;
  return { technique: least.technique, why };
}

function betterLazy(postcopy: Prediction | undefined, hybrid: Prediction | undefined): Prediction | undefined {
  if (postcopy === undefined || hybrid === undefined) return hybrid ?? postcopy;
  const useless = hybrid.degraded_ms > postcopy.degraded_ms * HYBRID_DEGRADED_SHARE;
  return useless ? postcopy : hybrid;
}

function whyLazy(lazy: Prediction, precopy: Prediction | undefined, goals: Goals): string {
  const name = lazy.technique === 'hybrid' ? 'Hybrid' : 'Post-copy';
  const instead = precopy === undefined ? '' : `, where pre-copy ${whatPreCopyNeeds(precopy, goals)}`;
  return `${name}: its downtime of about ${sayDuration(lazy.downtime_ms)} does not grow with the memory${instead}; for about ${sayDuration(lazy.degraded_ms)} afterwards the service needs both systems.`;
}

function whatPreCopyNeeds(precopy: Prediction, goals: Goals): string {
  if (precopy.ends?.action !== 'freeze')
    return `would not get within the ${sayDuration(goals.max_downtime_ms)} allowed`;
  if (precopy.cpu_share < 1) return `would have to slow the service to ${sayShare(precopy.cpu_share)} of its CPU time`;
  return `would need ${sayDuration(precopy.downtime_ms)}`;
}

function sayRounds(rounds: number): string {
  return rounds === 1 ? 'one round' : `${rounds} rounds`;
}
