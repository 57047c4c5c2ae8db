import type { BaselineOutcome } from '../baselines/model.ts';
import type { Outcome, Technique } from '../cases.ts';
import type { ConfigurationName } from './paper.ts';

/**
 * The paper's nine metrics. It wrote each dump to files and copied those afterwards; `ums` sends while it reads, so there
 * the time of a dump contains that of its transfer, and the latter is 0.
 */
export interface NineMetrics {
  pre_dump_ms: number;
  pre_dump_transfer_ms: number;
  dump_ms: number;
  dump_transfer_ms: number;
  resume_ms: number;
  faulted_transfer_ms: number;
  pre_dump_bytes: number;
  dump_bytes: number;
  faulted_bytes: number;
}

export const METRICS: readonly { key: keyof NineMetrics; name: string; unit: 's' | 'MB' }[] = [
  { key: 'pre_dump_ms', name: 'pre-dump', unit: 's' },
  { key: 'pre_dump_transfer_ms', name: 'pre-dump transfer', unit: 's' },
  { key: 'dump_ms', name: 'dump', unit: 's' },
  { key: 'dump_transfer_ms', name: 'dump transfer', unit: 's' },
  { key: 'resume_ms', name: 'resume', unit: 's' },
  { key: 'faulted_transfer_ms', name: 'faulted pages transfer', unit: 's' },
  { key: 'pre_dump_bytes', name: 'pre-dump size', unit: 'MB' },
  { key: 'dump_bytes', name: 'dump size', unit: 'MB' },
  { key: 'faulted_bytes', name: 'faulted pages size', unit: 'MB' },
];

/** One move, by whichever means. */
export interface FogFigures {
  configuration: ConfigurationName;
  by: 'ums' | 'runc + rsync';
  technique: Technique;
  repetition: number;
  metrics: NineMetrics;
  downtime_ms: number;
  total_ms: number;
  bytes: number;
  /** Until it ran as before, null when that was not seen. */
  degraded_ms: number | null;
  continuous: boolean;
  memory_ok: boolean;
}

export interface FogRun extends FogFigures {
  outcome: Outcome | BaselineOutcome;
}

const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);

export function metricsOfUms(outcome: Outcome): NineMetrics {
  const { migration, rounds, away_at, back_at } = outcome;
  const restoring = migration.steps.find((step) => step.name === 'restoring');
  // Everything that the restore needs is there when it begins.
  const dumped_at = restoring === undefined ? away_at : migration.started_at + restoring.start_ms;
  const pre_dump_bytes = sum(rounds.map((round) => round.wire_bytes));
  const filled = outcome.technique === 'post-copy' || outcome.technique === 'hybrid';
  const faulted_bytes = filled ? Math.max(0, outcome.memory_wire_bytes - pre_dump_bytes) : 0;
  return {
    pre_dump_ms: sum(rounds.map((round) => round.elapsed_ms)),
    pre_dump_transfer_ms: 0,
    dump_ms: Math.max(0, dumped_at - away_at),
    dump_transfer_ms: 0,
    resume_ms: Math.max(0, back_at - dumped_at),
    faulted_transfer_ms: filled ? (outcome.filling_ms ?? 0) : 0,
    pre_dump_bytes,
    dump_bytes: Math.max(0, outcome.bytes_on_wire - pre_dump_bytes - faulted_bytes),
    faulted_bytes,
  };
}

export function metricsOfBaseline(outcome: BaselineOutcome, technique: Technique): NineMetrics {
  const part = (name: string) => outcome.parts[name] ?? 0;
  const faulted_bytes = technique === 'post-copy' ? outcome.mib * 1024 * 1024 : 0;
  return {
    pre_dump_ms: part('pre_dump'),
    pre_dump_transfer_ms: part('pre_dump_transfer'),
    dump_ms: part('dump'),
    dump_transfer_ms: part('dump_transfer'),
    resume_ms: part('resume'),
    faulted_transfer_ms: part('faulted_transfer'),
    pre_dump_bytes: 0,
    dump_bytes: outcome.bytes - faulted_bytes,
    faulted_bytes,
  };
}
