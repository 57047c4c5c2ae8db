import { z } from 'zod';
import { Lab } from '#lab/lab.ts';
import { toUmsError } from '#src/telemetry/errors.ts';
import { TECHNIQUES } from '../cases.ts';
import { someOf, whole } from '../flags.ts';
import { pulseArgs } from '../pulse/service.ts';
import type { Bench, BenchOptions, BenchResult } from '../registry.ts';
import { atMost, type BenchCheck, type Reporter } from '../report.ts';
import { judge } from './judge.ts';
import {
  APPROACHES,
  type Cell,
  daemonsOf,
  ENGINES,
  type Group,
  grouped,
  nextOf,
  ONLY_WITHIN,
  type Side,
} from './plan.ts';
import { clearAll, FILES, NAME, other, type Stage, stageOf } from './stages.ts';
import { type CellResult, renderMatrix } from './table.ts';

const flagsSchema = z.object({
  from: z.array(z.enum(ENGINES)),
  to: z.array(z.enum(ENGINES)),
  approach: z.array(z.enum(APPROACHES)),
  technique: z.array(z.enum(TECHNIQUES)),
  size: z.int(),
});

export const matrix: Bench = {
  name: 'matrix',
  what: 'Every pair of orchestrators × approach × technique: migrated, or refused and why',
  examples: [
    'matrix --from podman --to docker --approach container-level --technique hybrid',
    'matrix --approach orchestrator-level --json',
    'matrix',
  ],
  repeat: 1,
  options: (command) =>
    command
      .option('--from <names>', `of ${ENGINES.join(', ')}`, someOf(ENGINES), [...ENGINES])
      .option('--to <names>', 'likewise', someOf(ENGINES), [...ENGINES])
      .option('--approach <names>', APPROACHES.join(', '), someOf(APPROACHES), [...APPROACHES])
      .option('--technique <names>', TECHNIQUES.join(', '), someOf(TECHNIQUES), [...TECHNIQUES])
      .option('--size <MiB>', 'memory of the service', whole(1, 4096), 32),
  run: async (report, options) => {
    const flags = flagsSchema.parse(options.flags);
    const groups = grouped(flags);
    const lab = Lab.open(undefined, (line) => report.say(`  ${line}`));
    const wasUp = lab.isUp;
    await lab.up({ hosts: ['alpha', 'beta'], engines: daemonsOf(groups) });
    try {
      await clearAll(lab, groups);
      return await new Matrix(report, options, lab, flags.size).run(groups);
    } finally {
      if (!wasUp && !options.keep) await lab.down();
      else await clearAll(lab, groups);
    }
  },
};

class Matrix {
  readonly #report: Reporter;
  readonly #options: BenchOptions;
  readonly #lab: Lab;
  readonly #mib: number;
  readonly #results: CellResult[] = [];
  readonly #given = new Set<string>();
  #all = 0;

  constructor(report: Reporter, options: BenchOptions, lab: Lab, mib: number) {
    this.#report = report;
    this.#options = options;
    this.#lab = lab;
    this.#mib = mib;
  }

  async run(groups: readonly Group[]): Promise<BenchResult> {
    this.#all = groups.reduce((sum, { cells }) => sum + cells.length, 0) * this.#options.repeat;
    for (const group of groups) await this.#group(group);
    this.#report.say(`\n${renderMatrix(this.#results)}`);
    return {
      checks: checksOf(this.#results),
      figures: { memory_mib: this.#mib, cells: this.#results },
    };
  }

  /** One service goes to and fro between two engines until every cell has been asked for as often as it shall be. */
  async #group(group: Group): Promise<void> {
    const { signal, repeat } = this.#options;
    const args = pulseArgs({ mib: this.#mib, dirty_kb_s: 1000 }, undefined, `${FILES}/pulse.log`);
    const stage = stageOf(this.#lab, group, { name: NAME, image: 'pulse', args }, this.#given);
    const left: Cell[] = Array.from({ length: repeat }, () => group.cells.map((cell) => ({ ...cell }))).flat();
    let at: Side | undefined;
    try {
      for (let next = nextOf(group, left, at ?? 'a'); next !== undefined; next = nextOf(group, left, at ?? 'a')) {
        signal.throwIfAborted();
        const { cell, from } = next;
        if (from !== at && !(await this.#started(stage, from, left))) return;
        left.splice(left.indexOf(cell), 1);
        const result = await judge(this.#lab, stage, from, cell, signal);
        await this.#keep({ ...result, repetition: this.#asked(cell) + 1 });
        at = result.outcome === 'wrong' ? undefined : result.outcome === 'migrated' ? other(from) : from;
      }
    } finally {
      await stage.clear();
    }
  }

  /** Without a service there is nothing to ask: then all that is left of the group is wrong. */
  async #started(stage: Stage, from: Side, left: readonly Cell[]): Promise<boolean> {
    try {
      await stage.start(from);
      return true;
    } catch (thrown) {
      this.#options.signal.throwIfAborted();
      const { code, message, detail } = toUmsError(thrown);
      const problems = [`it could not be set up: ${code}: ${message} ${detail ?? ''}`.slice(0, 2000)];
      for (const cell of left) await this.#keep({ ...unasked(cell, problems), repetition: this.#asked(cell) + 1 });
      return false;
    }
  }

  #asked(cell: Cell): number {
    const key = nameOf(cell);
    return this.#results.filter((result) => nameOf(result.cell) === key).length;
  }

  async #keep(result: CellResult): Promise<void> {
    this.#results.push(result);
    const { cell, outcome, downtime_ms, total_ms, code, problems } = result;
    await this.#options.results.repetition(`${nameOf(cell)}-${result.repetition}`, result);
    this.#report.event('repetition', { name: nameOf(cell), result });
    const times = `away ${Math.round(downtime_ms ?? 0)} ms, ${Math.round(total_ms)} ms in all`;
    const said = { migrated: times, refused: code ?? '', wrong: problems.join('; ') }[outcome];
    this.#report.say(`[${this.#results.length}/${this.#all}] ${nameOf(cell)}: ${outcome}, ${said}`);
  }
}

const nameOf = ({ from, to, approach, technique }: Cell): string => `${from}-${to}-${approach}-${technique}`;

function unasked(cell: Cell, problems: string[]): CellResult {
  const nothing = { code: null, reason: null, mend: null, downtime_ms: null };
  const agents = { downtime_ms: null, total_ms: null };
  return { cell, repetition: 0, outcome: 'wrong', ...nothing, total_ms: 0, agents, problems };
}

const isBetweenEqual = ({ approach, from, to }: Cell): boolean =>
  approach === 'orchestrator-level' && from === to && !ONLY_WITHIN.includes(from);

const stays = ({ outcome }: CellResult): boolean => outcome !== 'migrated';

export function checksOf(results: readonly CellResult[]): BenchCheck[] {
  const count = (wanted: (one: CellResult) => boolean): number => results.filter(wanted).length;
  return [
    atMost(
      'cells that are wrong',
      count(({ outcome }) => outcome === 'wrong'),
      0,
    ),
    atMost(
      'container-level: cells that did not migrate',
      count((one) => one.cell.approach === 'container-level' && stays(one)),
      0,
    ),
    atMost(
      'service-level, cold: cells that did not migrate',
      count(
        ({ cell, ...one }) =>
          cell.approach === 'service-level' && cell.technique === 'cold' && one.outcome !== 'migrated',
      ),
      0,
    ),
    atMost(
      'orchestrator-level, one engine: cells that did not migrate',
      count((one) => isBetweenEqual(one.cell) && stays(one)),
      0,
    ),
  ];
}
