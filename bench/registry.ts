import type { Command } from 'commander';
import type { Results } from './results.ts';
import type { BenchCheck, Reporter } from './report.ts';

export interface BenchOptions {
  /** Repetitions of each figure. */
  repeat: number;
  /** Leave the test hosts running. */
  keep: boolean;
  /** Aborted by Ctrl-C: what was started is taken away again, and what was measured stays. */
  signal: AbortSignal;
  /** Where every repetition is kept as soon as it is measured. */
  results: Results;
  /** The bench's own options, by the names that commander gives them; the bench parses them. */
  flags: Readonly<Record<string, unknown>>;
}

export interface BenchResult {
  checks: BenchCheck[];
  /** Everything that was measured: every repetition, the link, the workload. */
  figures: Record<string, unknown>;
}

export interface Bench {
  name: string;
  what: string;
  /** Command lines for its --help. */
  examples: readonly string[];
  /** Repetitions of each figure unless asked otherwise. */
  repeat?: number;
  /** Adds its own options. */
  options?(command: Command): void;
  run(report: Reporter, options: BenchOptions): Promise<BenchResult>;
}
