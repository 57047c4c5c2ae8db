import { describe, expect, it } from 'vitest';
import { TECHNIQUES } from '../cases.ts';
import { APPROACHES, type Cell, daemonsOf, ENGINES, grouped, nextOf, type Side } from './plan.ts';

const everything = { from: ENGINES, to: ENGINES, approach: APPROACHES, technique: TECHNIQUES };

const daemonsBetween = (from: Cell['from'], to: Cell['to']) =>
  daemonsOf(grouped({ ...everything, from: [from], to: [to] }));

describe('the plan of the matrix', () => {
  it('has every ordered pair by every approach and technique, once', () => {
    const cells = grouped(everything).flatMap((group) => group.cells);
    const names = new Set(cells.map((cell) => Object.values(cell).join(' ')));
    expect(names.size).toBe(cells.length);
    expect(cells.length).toBe(ENGINES.length ** 2 * APPROACHES.length * TECHNIQUES.length);
  });

  it('puts both directions of a pair together, and lets one service go to and fro', () => {
    const [group] = grouped({ ...everything, from: ['docker', 'podman'], to: ['docker', 'podman'] }).filter(
      ({ a, b, approach }) => a !== b && approach === 'container-level',
    );
    if (group === undefined) throw new Error('no such group');
    expect([group.a, group.b]).toEqual(['podman', 'docker']);
    const left = [...group.cells];
    const way: Cell[] = [];
    let at: Side = 'a';
    for (let next = nextOf(group, left, at); next !== undefined; next = nextOf(group, left, at)) {
      expect(next.from).toBe(at);
      expect(next.cell.from).toBe(group[at]);
      left.splice(left.indexOf(next.cell), 1);
      way.push(next.cell);
      at = at === 'a' ? 'b' : 'a';
    }
    expect(way.length).toBe(2 * TECHNIQUES.length);
  });

  it('begins anew at the other side when all that is left begins there', () => {
    const [group] = grouped({ ...everything, from: ['docker'], to: ['podman'] });
    if (group === undefined) throw new Error('no such group');
    expect(nextOf(group, group.cells, 'a')).toEqual({ cell: group.cells[0], from: 'b' });
    expect(nextOf(group, [], 'a')).toBeUndefined();
  });

  it('starts the daemons that are needed and no others', () => {
    expect(daemonsBetween('podman', 'runc')).toEqual([]);
    expect(daemonsBetween('docker', 'kubernetes')).toEqual(['docker', 'kubernetes']);
    expect(daemonsBetween('podman', 'swarm')).toEqual(['swarm']);
  });
});
