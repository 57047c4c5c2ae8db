import type { BenchCheck, Reporter } from './report.ts';

export interface BenchOptions {
  /** Repetitions of each figure. */
  repeat: number;
  /** Moves of a soak. */
  moves: number;
  /** MiB of state, where a bench lets it be chosen. */
  sizes: number[] | undefined;
  keep: boolean;
}

export interface BenchResult {
  checks: BenchCheck[];
  /** Everything that was measured: every repetition, the link, the workload. */
  figures: Record<string, unknown>;
}

export interface Bench {
  name: string;
  what: string;
  run(report: Reporter, options: BenchOptions): Promise<BenchResult>;
}
