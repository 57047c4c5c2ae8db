import { DAEMON_ENGINES, type DaemonEngine } from '#lab/lab.ts';
import { type Technique, TECHNIQUES } from '../cases.ts';

/** What the matrix asks for: every ordered pair of these, by every approach and every technique. */
export const ENGINES = ['podman', 'docker', 'containerd', 'kubernetes', 'swarm', 'runc'] as const;
export type Engine = (typeof ENGINES)[number];
/** Those whose own containers ums leaves alone: what moves of them is within. */
export const ONLY_WITHIN: readonly Engine[] = ['swarm'];
export const APPROACHES = ['orchestrator-level', 'container-level', 'service-level'] as const;
export type Approach = (typeof APPROACHES)[number];

export interface Cell {
  from: Engine;
  to: Engine;
  approach: Approach;
  technique: Technique;
}

export interface Wanted {
  from: readonly Engine[];
  to: readonly Engine[];
  approach: readonly Approach[];
  technique: readonly Technique[];
}

/**
 * Cells between the same two engines, which one service goes through on its way there and back: `a` runs on one host, `b`
 * on the other.
 */
export interface Group {
  approach: Approach;
  a: Engine;
  b: Engine;
  cells: Cell[];
}

export function grouped({ from, to, approach: approaches, technique }: Wanted): Group[] {
  const groups = new Map<string, Group>();
  for (const approach of approaches) {
    for (const a of from) {
      for (const b of to) {
        const [first, second] = ENGINES.indexOf(a) <= ENGINES.indexOf(b) ? [a, b] : [b, a];
        const key = `${approach} ${first} ${second}`;
        const group = groups.get(key) ?? { approach, a: first, b: second, cells: [] };
        groups.set(key, group);
        for (const each of TECHNIQUES) {
          if (technique.includes(each)) group.cells.push({ from: a, to: b, approach, technique: each });
        }
      }
    }
  }
  return [...groups.values()];
}

export type Side = 'a' | 'b';

/** The next of the cells that are left, one that begins where the service is if there is one; and where it begins. */
export function nextOf(group: Group, left: readonly Cell[], at: Side): { cell: Cell; from: Side } | undefined {
  const here = left.find((cell) => cell.from === group[at]);
  if (here !== undefined) return { cell: here, from: at };
  const [cell] = left;
  return cell === undefined ? undefined : { cell, from: at === 'a' ? 'b' : 'a' };
}

/** Daemons that a test host must run for these engines. */
export function daemonsOf(groups: readonly Group[]): DaemonEngine[] {
  const used = new Set<string>(groups.flatMap(({ a, b }) => [a, b]));
  return DAEMON_ENGINES.filter((engine) => used.has(engine));
}
