import type { BaselineOutcome } from '../baselines/model.ts';
import type { Floor } from '../baselines/floor.ts';
import type { Outcome } from '../cases.ts';
import { known, median } from '../measure/statistics.ts';
import { atLeast, atMost, type BenchCheck } from '../report.ts';
import type { Cell } from './plan.ts';

/** The figures that `ums` is held to, each a ratio of medians of the same run. */
export interface Measured {
  moves: readonly Moved[];
  floors: readonly Floor[];
  podman: readonly BaselineOutcome[];
  failures: readonly string[];
  link_bps: { fast: number | null; slow: number | null };
}

export interface Moved {
  cell: Cell;
  /** `there` is the first move of a fresh service, `back` the second. */
  way: 'there' | 'back';
  repetition: number;
  outcome: Outcome;
}

const MIB = 1024 * 1024;
const PRE_COPY_DIRTY_KB_S = 10_000;
/** Of a service's memory, what a second move may send besides what was written in between. */
const BACK_SHARE = 0.05;

export function judge(measured: Measured, reference_mib: number): BenchCheck[] {
  return [
    ...againstFloor(measured, reference_mib),
    ...flatness(measured),
    ...degradation(measured, reference_mib),
    ...againstPodman(measured, reference_mib),
    ...efficiency(measured, reference_mib),
    ...secondMoves(measured),
    ...correctness(measured),
  ];
}

/** The outcomes of first moves on the fast link, by engine, size, dirtying and technique. */
export function groupsOf(moves: readonly Moved[]): { cell: Cell; outcomes: Outcome[] }[] {
  const groups = new Map<string, { cell: Cell; outcomes: Outcome[] }>();
  for (const { cell, way, outcome } of moves) {
    if (way !== 'there') continue;
    const key = [cell.link, cell.engine, cell.mib, cell.dirty_kb_s, cell.technique].join(' ');
    const group = groups.get(key) ?? { cell, outcomes: [] };
    group.outcomes.push(outcome);
    groups.set(key, group);
  }
  return [...groups.values()];
}

const downtimeOf = (outcomes: readonly { downtime_ms: number }[]) => median(outcomes.map((one) => one.downtime_ms));

function nameOf(cell: Cell): string {
  return `${cell.engine} ${cell.technique} ${cell.mib} MiB, ${cell.dirty_kb_s / 1000} MB/s`;
}

function againstFloor({ moves, floors }: Measured, mib: number): BenchCheck[] {
  if (floors.length === 0) return [];
  const floor_ms = downtimeOf(floors);
  return groupsOf(moves).flatMap(({ cell, outcomes }) => {
    if (cell.mib !== mib || cell.link !== 'fast' || cell.technique === 'cold') return [];
    if (cell.technique === 'pre-copy' && cell.dirty_kb_s > PRE_COPY_DIRTY_KB_S) return [];
    const limit = cell.technique === 'pre-copy' ? 1.5 : 1;
    return [atMost(`downtime / local floor: ${nameOf(cell)}`, downtimeOf(outcomes) / floor_ms, limit)];
  });
}

function flatness({ moves }: Measured): BenchCheck[] {
  const groups = groupsOf(moves).filter(({ cell }) => cell.link === 'fast');
  return groups.flatMap(({ cell, outcomes }) => {
    if (cell.mib !== 4096 || (cell.technique !== 'post-copy' && cell.technique !== 'hybrid')) return [];
    const small = groups.find(
      (other) =>
        other.cell.mib === 128 &&
        other.cell.engine === cell.engine &&
        other.cell.technique === cell.technique &&
        other.cell.dirty_kb_s === cell.dirty_kb_s,
    );
    if (small === undefined) return [];
    const name = `downtime at 4 GiB / at 128 MiB: ${cell.engine} ${cell.technique}`;
    return [atMost(name, downtimeOf(outcomes) / downtimeOf(small.outcomes), 1.5)];
  });
}

/** Until it ran as before; where it never did while it was watched, at least that long. */
export function degradedOf(outcomes: readonly Outcome[]): number {
  return median(outcomes.map(({ after }) => after.full_speed_ms ?? after.seconds * 1000));
}

function degradation({ moves }: Measured, mib: number): BenchCheck[] {
  const groups = groupsOf(moves).filter(({ cell }) => cell.link === 'fast' && cell.mib === mib && cell.dirty_kb_s > 0);
  return groups.flatMap(({ cell, outcomes }) => {
    if (cell.technique !== 'hybrid') return [];
    const lazy = groups.find(
      ({ cell: other }) =>
        other.technique === 'post-copy' && other.engine === cell.engine && other.dirty_kb_s === cell.dirty_kb_s,
    );
    if (lazy === undefined) return [];
    const name = `degraded time, hybrid / post-copy: ${cell.engine}, ${cell.dirty_kb_s / 1000} MB/s`;
    return [atMost(name, degradedOf(outcomes) / Math.max(1, degradedOf(lazy.outcomes)), 1 / 3)];
  });
}

function againstPodman({ moves, podman }: Measured, mib: number): BenchCheck[] {
  if (podman.length === 0) return [];
  const podman_ms = downtimeOf(podman);
  return groupsOf(moves).flatMap(({ cell, outcomes }) => {
    const lazy = cell.technique === 'post-copy' || cell.technique === 'hybrid';
    if (!lazy || cell.link !== 'fast' || cell.mib !== mib) return [];
    return [atLeast(`podman's downtime / ums': ${nameOf(cell)}`, podman_ms / downtimeOf(outcomes), 20)];
  });
}

/** Bytes that must travel: all of the service's memory, once. It is incompressible. */
function efficiency({ moves, link_bps }: Measured, reference_mib: number): BenchCheck[] {
  return groupsOf(moves).flatMap(({ cell, outcomes }) => {
    if (cell.technique === 'pre-copy') return [];
    const bytes = cell.mib * MIB;
    const checks: BenchCheck[] = [];
    const total_ms = median(outcomes.map((one) => one.total_ms));
    const rate_bps = link_bps[cell.link];
    const at = cell.link === 'slow' ? ', slow link' : '';
    // What is written meanwhile must travel again with hybrid, so its share depends on the dirtying.
    if (cell.technique !== 'hybrid' || cell.dirty_kb_s === 0) {
      const wire = median(outcomes.map((one) => one.bytes_on_wire));
      checks.push(atMost(`bytes on the wire / memory: ${nameOf(cell)}${at}`, wire / bytes, 1.05));
    }
    // What a small service needs besides its memory's way over a fast link says nothing of that way.
    if (cell.dirty_kb_s === 0 && rate_bps !== null && (cell.link === 'slow' || cell.mib >= reference_mib)) {
      const least_ms = (bytes * 8000) / rate_bps;
      checks.push(atMost(`total / (bytes / link rate): ${nameOf(cell)}${at}`, total_ms / least_ms, 1.15));
    }
    return checks;
  });
}

function secondMoves({ moves }: Measured): BenchCheck[] {
  const back = moves.filter((one) => one.way === 'back' && one.cell.dirty_kb_s === 0);
  const techniques = [...new Set(back.map((one) => `${one.cell.engine} ${one.cell.technique}`))];
  return techniques.map((name) => {
    const own = back.filter((one) => `${one.cell.engine} ${one.cell.technique}` === name);
    const share = median(own.map(({ outcome }) => outcome.bytes_on_wire / (outcome.mib * MIB)));
    return atMost(`second move, bytes on the wire / memory: ${name}`, share, BACK_SHARE);
  });
}

function correctness({ moves, floors, podman, failures }: Measured): BenchCheck[] {
  const all = [...moves.map((one) => one.outcome), ...floors, ...podman];
  const backwards = known(moves.map((one) => one.outcome.client?.backwards));
  return [
    atMost('moves that failed', failures.length, 0),
    atMost('restarts or second copies of the workload', all.filter((one) => !one.continuous).length, 0),
    atMost('changed memory', all.filter((one) => !one.memory_ok).length, 0),
    atMost(
      'answers from the past',
      backwards.reduce((sum, count) => sum + count, 0),
      0,
    ),
  ];
}
