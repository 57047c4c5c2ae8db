import { type Command, Option } from 'commander';
import { z } from 'zod';
import { Lab } from '#lab/lab.ts';
import { formatDuration } from '#src/cli/format.ts';
import { toUmsError } from '#src/telemetry/errors.ts';
import { TECHNIQUES } from '../cases.ts';
import { rate, someOf } from '../flags.ts';
import { APPROACHES, type Engine, ENGINES } from '../matrix/plan.ts';
import { clearAll } from '../matrix/stages.ts';
import type { BenchOptions } from '../registry.ts';
import type { Reporter } from '../report.ts';
import { type StagedLink, stageLink } from '../stage.ts';
import { carry, type Carried } from './carry.ts';
import { daemonsFor, groupOf, holding, nameOf, type Point, type Route, routesOf } from './plan.ts';
import { wayOf } from './ways.ts';

/** What the paper's experiments have in common: their options, their hosts, and how each of their moves is kept. */
export interface Run extends Carried, Route {
  /** MiB, processes: what was varied. */
  at: number;
  repetition: number;
}

export interface Measured {
  runs: Run[];
  failures: string[];
  link: StagedLink;
}

const flagsSchema = z.object({
  approach: z.array(z.enum(APPROACHES)),
  engine: z.array(z.enum(ENGINES)),
  technique: z.enum([...TECHNIQUES, 'auto']),
  rate: z.string(),
});

/** Options that all of them have. */
export function withPaperOptions(command: Command, engine: readonly Engine[], linkRate: string): Command {
  const technique = new Option('--technique <how>', 'service-level is always cold; auto lets the agents choose');
  return command
    .option('--approach <names>', APPROACHES.join(', '), someOf(APPROACHES), [...APPROACHES])
    .option('--engine <names>', `of both hosts: ${ENGINES.join(', ')}`, someOf(ENGINES), [...engine])
    .addOption(technique.choices([...TECHNIQUES, 'auto']).default('auto'))
    .option('--rate <rate>', 'rate of the link', rate, linkRate);
}

/** Every point of an experiment by every approach, as often as it was asked for; both hosts are left as they were found. */
export async function measurePoints(
  report: Reporter,
  options: BenchOptions,
  points: readonly Point[],
): Promise<Measured> {
  const flags = flagsSchema.parse(options.flags);
  const routes = routesOf(flags);
  const lab = Lab.open(undefined, (line) => report.say(`  ${line}`));
  const wasUp = lab.isUp;
  await lab.up({ hosts: ['alpha', 'beta'], engines: daemonsFor(routes) });
  const before = lab.status().link;
  try {
    await clear(lab, routes, points);
    const link = await stageLink(report, lab, 'lan', flags.rate, 0);
    const { runs, failures } = await new Series(report, options, lab, flags.technique).run(routes, points);
    return { runs, failures, link };
  } finally {
    if (!wasUp && !options.keep) await lab.down();
    else {
      await clear(lab, routes, points);
      await lab.setLink({ ...before, rate: before.rate_bps === null ? 'max' : `${before.rate_bps}bit` });
    }
  }
}

async function clear(lab: Lab, routes: readonly Route[], points: readonly Point[]): Promise<void> {
  const work = points[0]?.work ?? holding(0);
  await clearAll(lab, routes.map(groupOf), work.name);
  for (const route of routes) await wayOf(lab, route, work, new Set()).clear();
}

class Series {
  readonly #report: Reporter;
  readonly #options: BenchOptions;
  readonly #lab: Lab;
  readonly #technique: string;
  readonly #built = new Set<string>();
  readonly #runs: Run[] = [];
  readonly #failures: string[] = [];
  #done = 0;

  constructor(report: Reporter, options: BenchOptions, lab: Lab, technique: string) {
    this.#report = report;
    this.#options = options;
    this.#lab = lab;
    this.#technique = technique;
  }

  /** Repetitions are interleaved, so that what else the machine does falls on all that is compared alike. */
  async run(routes: readonly Route[], points: readonly Point[]): Promise<{ runs: Run[]; failures: string[] }> {
    const all = this.#options.repeat * points.length * routes.length;
    for (let repetition = 1; repetition <= this.#options.repeat; repetition += 1) {
      for (const point of points) for (const route of routes) await this.#one(route, point, repetition, all);
    }
    return { runs: this.#runs, failures: this.#failures };
  }

  async #one(route: Route, point: Point, repetition: number, all: number): Promise<void> {
    const { signal } = this.#options;
    signal.throwIfAborted();
    this.#done += 1;
    const name = `${route.approach}, ${nameOf(route)}, ${point.title}`;
    const way = wayOf(this.#lab, route, point.work, this.#built);
    const place = `[${this.#done}/${all}]`;
    try {
      const carried = await carry(this.#lab, route, point.work, way, { technique: this.#technique, signal });
      await this.#keep({ ...route, at: point.at, repetition, ...carried }, `${place} ${name}`);
    } catch (thrown) {
      // A move that fails is a result too: it is told, and the next one gets its chance.
      signal.throwIfAborted();
      const { code, message, detail } = toUmsError(thrown);
      this.#failures.push(`${name}: ${code}: ${message}`);
      this.#report.event('failure', { name, code, message, detail: detail?.slice(0, 4000) ?? null });
      this.#report.say(`${place} ${this.#report.style.red('failed')} ${name}: ${code}: ${message}`);
    } finally {
      await way.clear();
    }
  }

  async #keep(run: Run, title: string): Promise<void> {
    const { approach, from, to, at, repetition, runs_ms, total_ms, downtime_ms, technique, problems } = run;
    this.#runs.push(run);
    await this.#options.results.repetition(`${approach}-${from}-${to}-${at}-${repetition}`, run);
    this.#report.event('repetition', { name: title, result: run });
    const times = `runs there after ${formatDuration(runs_ms)}, away ${formatDuration(downtime_ms)}, done after ${formatDuration(total_ms)}`;
    const wrong = problems.length === 0 ? '' : `: ${this.#report.style.red(problems.join('; '))}`;
    this.#report.say(`${title}: ${technique}, ${times}${wrong}`);
  }
}
