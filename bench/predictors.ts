import { join } from 'node:path';
import { formatTable } from '#src/cli/format.ts';
import { CANDIDATES, type Candidate, lastRate, shipped } from './predictors/candidates.ts';
import { replay, type Sample, type Score, score } from './predictors/replay.ts';
import { readTraces } from './predictors/trace.ts';
import type { Bench, BenchResult } from './registry.ts';
import { below, type Reporter } from './report.ts';

const TRACES = join(import.meta.dirname, 'traces');

interface Result {
  candidate: string;
  all: Score;
  traces: Record<string, Score>;
}

/** Every way to predict dirty pages, judged on recorded programs; each program is held out of what it learns from. */
export const predictors: Bench = {
  name: 'predictors',
  what: 'ways to predict the pages of the next round, judged on recorded programs',
  examples: ['ums bench predictors', 'ums bench predictors --json'],
  run(report): Promise<BenchResult> {
    const samples = readTraces(TRACES).flatMap(replay);
    const names = [...new Set(samples.map((sample) => sample.trace))];
    report.say(
      `  ${samples.length} rounds of replayed migrations of ${names.length} programs, each held out in turn\n`,
    );
    const results = CANDIDATES.map((candidate) => {
      const result = judge(candidate, samples, names);
      report.event('candidate', { ...result });
      return result;
    });
    sayScores(report, results);
    sayTraces(report, results, names);
    const of = (name: string) => results.find((result) => result.candidate === name)?.all;
    const [ours, baseline] = [of(shipped.name), of(lastRate.name)];
    const checks =
      ours === undefined || baseline === undefined
        ? []
        : [
            below('typical factor that the shipped predictor is off', ours.factor, baseline.factor),
            below('freezes that overrun with the shipped predictor', ours.overrun, baseline.overrun),
          ];
    return Promise.resolve({ checks, figures: { samples: samples.length, programs: names, results } });
  },
};

function judge(candidate: Candidate, samples: readonly Sample[], names: readonly string[]): Result {
  const traces: Record<string, Score> = {};
  const answers: { sample: Sample; predicted: number }[] = [];
  for (const name of names) {
    const predictor = candidate.train(samples.filter((sample) => sample.trace !== name));
    const own = samples
      .filter((sample) => sample.trace === name)
      .map((sample) => ({ sample, predicted: predictor(sample.seen).pages(sample.interval_ms) }));
    traces[name] = score(own);
    answers.push(...own);
  }
  return { candidate: candidate.name, all: score(answers), traces };
}

function percent(share: number): string {
  return `${(share * 100).toFixed(1)} %`;
}

function sayScores(report: Reporter, results: readonly Result[]): void {
  const table = formatTable(
    [
      { title: 'predictor', value: (row: Result) => row.candidate },
      { title: 'median error', value: (row) => percent(row.all.median), align: 'right' },
      { title: '90th percentile', value: (row) => percent(row.all.p90), align: 'right' },
      { title: 'typical factor', value: (row) => row.all.factor.toFixed(2), align: 'right' },
      { title: 'shrinking', value: (row) => row.all.shrinking.toFixed(2), align: 'right' },
      { title: 'overruns', value: (row) => percent(row.all.overrun), align: 'right' },
      { title: 'missed', value: (row) => percent(row.all.missed), align: 'right' },
    ],
    [...results],
  );
  report.say(table);
  for (const { name, what } of CANDIDATES) report.say(`  ${name}: ${what}`);
  report.say(
    '  typical factor: mean error of the logarithm; shrinking: the same for rounds of less than half the time',
  );
  report.say('  overruns: freezes said to fit that take more than 1.2 times the budget; missed: fits not recognised\n');
}

function sayTraces(report: Reporter, results: readonly Result[], names: readonly string[]): void {
  const table = formatTable(
    [
      { title: 'typical factor', value: (name: string) => name },
      ...results.map((result) => ({
        title: result.candidate,
        value: (name: string) => (result.traces[name]?.factor ?? 0).toFixed(2),
        align: 'right' as const,
      })),
    ],
    [...names],
  );
  report.say(table);
}
