import { type Technique, TECHNIQUES } from '../cases.ts';
import { median } from '../measure/statistics.ts';
import type { FogFigures } from './metrics.ts';
import { CONFIGURATIONS, type ConfigurationName } from './paper.ts';

/** What the paper found, asked again of this run's figures. Nothing here is known beforehand but the questions. */
export interface Finding {
  claim: string;
  /** Undefined when this run lacks what is needed to answer. */
  holds: boolean | undefined;
  because: string;
}

/** Medians that differ by less than this are said to. */
const NEAR = 1.05;
/** Downtimes of the same link with little and much dirtying are "flat" when they differ by no more. */
const FLAT = 1.25;
/** A downtime has "collapsed" when it is that many times the one with little dirtying. */
const COLLAPSE = 3;
const ALL_OF_TOTAL = 0.9;

type Figure = 'total_ms' | 'downtime_ms' | 'bytes';

class Medians {
  readonly #runs: readonly FogFigures[];
  readonly configurations: ConfigurationName[];

  constructor(runs: readonly FogFigures[]) {
    this.#runs = runs;
    // Techniques can be compared only where all four were measured.
    this.configurations = CONFIGURATIONS.filter((name) => TECHNIQUES.every((each) => this.has(name, each)));
  }

  has(configuration: ConfigurationName, technique: Technique): boolean {
    return this.#own(configuration, technique).length > 0;
  }

  of(configuration: ConfigurationName, technique: Technique, figure: Figure): number {
    return median(this.#own(configuration, technique).map((run) => run[figure]));
  }

  #own(configuration: ConfigurationName, technique: Technique): FogFigures[] {
    return this.#runs.filter((run) => run.configuration === configuration && run.technique === technique);
  }
}

export function findingsOf(runs: readonly FogFigures[]): Finding[] {
  const medians = new Medians(runs);
  return [
    extreme(medians, 'cold has the lowest total time in every configuration', 'total_ms', 'cold', 'lowest'),
    extreme(medians, 'hybrid has the highest total time in every configuration', 'total_ms', 'hybrid', 'highest'),
    extreme(medians, 'cold has the highest downtime in every configuration', 'downtime_ms', 'cold', 'highest'),
    coldIsAllDowntime(medians),
    flat(medians, 'post-copy'),
    flat(medians, 'hybrid'),
    preCopyCollapses(medians),
    leastData(medians),
  ];
}

const seconds = (value_ms: number) => `${(value_ms / 1000).toFixed(value_ms < 9995 ? 2 : 1)} s`;
const shown = (figure: Figure, value: number) =>
  figure === 'bytes' ? `${(value / 1e6).toFixed(1)} MB` : seconds(value);

function every(
  medians: Medians,
  claim: string,
  ask: (name: ConfigurationName) => { holds: boolean; because: string },
): Finding {
  const answers = medians.configurations.map((name) => ({ name, ...ask(name) }));
  if (answers.length === 0) return { claim, holds: undefined, because: 'not all four techniques were measured' };
  const because = answers.map((answer) => `${answer.name}: ${answer.because}`).join('; ');
  return { claim, holds: answers.every((answer) => answer.holds), because };
}

function extreme(
  medians: Medians,
  claim: string,
  figure: Figure,
  technique: Technique,
  which: 'lowest' | 'highest',
): Finding {
  return every(medians, claim, (name) => {
    const own = medians.of(name, technique, figure);
    const others = TECHNIQUES.filter((each) => each !== technique).map((each) => ({
      each,
      value: medians.of(name, each, figure),
    }));
    const sorted = others.toSorted((a, b) => a.value - b.value);
    const rival = which === 'lowest' ? sorted[0] : sorted.at(-1);
    if (rival === undefined) return { holds: false, because: 'nothing to compare with' };
    const holds = which === 'lowest' ? own <= rival.value : own >= rival.value;
    const beside = `${rival.each} ${shown(figure, rival.value)}`;
    const near = Math.max(own, rival.value) <= Math.min(own, rival.value) * NEAR ? ', hardly a difference' : '';
    return { holds, because: `${technique} ${shown(figure, own)}, ${which} of the others ${beside}${near}` };
  });
}

function coldIsAllDowntime(medians: Medians): Finding {
  return every(medians, "cold's downtime is its total time", (name) => {
    const share = medians.of(name, 'cold', 'downtime_ms') / medians.of(name, 'cold', 'total_ms');
    return { holds: share >= ALL_OF_TOTAL, because: `${Math.round(share * 100)} % of it` };
  });
}

const PAIRS = [
  ['A', 'B'],
  ['C', 'D'],
] as const;

function flat(medians: Medians, technique: Technique): Finding {
  const claim = `${technique}'s downtime is low and does not depend on dirtying`;
  const pairs = PAIRS.filter((pair) => pair.every((name) => medians.has(name, technique) && medians.has(name, 'cold')));
  if (pairs.length === 0) return { claim, holds: undefined, because: 'no link was measured with both dirty rates' };
  const answers = pairs.map(([little, much]) => {
    const [low, high] = [medians.of(little, technique, 'downtime_ms'), medians.of(much, technique, 'downtime_ms')];
    const isLow = [little, much].every(
      (name) => medians.of(name, technique, 'downtime_ms') < medians.of(name, 'cold', 'downtime_ms'),
    );
    const factor = Math.max(low, high) / Math.max(1, Math.min(low, high));
    return { holds: isLow && factor <= FLAT, because: `${little} ${seconds(low)}, ${much} ${seconds(high)}` };
  });
  return {
    claim,
    holds: answers.every((answer) => answer.holds),
    because: answers.map((answer) => answer.because).join('; '),
  };
}

function preCopyCollapses(medians: Medians): Finding {
  const claim = 'pre-copy collapses in B, where the service writes fast for a slow link';
  if (!medians.has('A', 'pre-copy') || !medians.has('B', 'pre-copy')) {
    return { claim, holds: undefined, because: 'pre-copy was not measured in A and B' };
  }
  const [calm, busy] = [medians.of('A', 'pre-copy', 'downtime_ms'), medians.of('B', 'pre-copy', 'downtime_ms')];
  return { claim, holds: busy >= COLLAPSE * calm, because: `its downtime: A ${seconds(calm)}, B ${seconds(busy)}` };
}

function leastData(medians: Medians): Finding {
  return every(medians, 'cold and post-copy transfer the least', (name) => {
    const of = (technique: Technique) => medians.of(name, technique, 'bytes');
    const least = Math.max(of('cold'), of('post-copy'));
    const others = Math.min(of('pre-copy'), of('hybrid'));
    const text = TECHNIQUES.map((technique) => `${technique} ${shown('bytes', of(technique))}`).join(', ');
    return { holds: least <= others, because: text };
  });
}

function verdict(holds: boolean | undefined): string {
  if (holds === undefined) return 'Not asked';
  return holds ? 'Holds' : 'Does not hold';
}

/** The findings as a text for people. */
export function findingsText(findings: readonly Finding[], by: string, source: string): string {
  const lines = findings.map(({ claim, holds, because }) => `- ${verdict(holds)}: ${claim}. (${because})`);
  return `What ${source} found, in this run, by ${by}:\n${lines.join('\n')}\n`;
}
