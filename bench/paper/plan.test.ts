import { describe, expect, it } from 'vitest';
import { APPROACHES, ENGINES } from '../matrix/plan.ts';
import { daemonsFor, growingBy, holding, processesOf, routesOf } from './plan.ts';

describe('the plan of the paper’s experiments', () => {
  it('has each approach on each engine that is asked for, and service-level where that is possible', () => {
    const routes = routesOf({ approach: APPROACHES, engine: ['kubernetes'] });
    expect(routes).toEqual([
      { approach: 'orchestrator-level', from: 'kubernetes', to: 'kubernetes' },
      { approach: 'container-level', from: 'kubernetes', to: 'kubernetes' },
      { approach: 'service-level', from: 'kubernetes', to: 'kubernetes' },
    ]);
    expect(daemonsFor(routes)).toEqual(['kubernetes']);
  });

  it('takes the engines that are asked for at service-level, too, if it knows them', () => {
    const routes = routesOf({ approach: ['service-level'], engine: ENGINES });
    expect(routes.map(({ from, to }) => [from, to])).toEqual([
      ['podman', 'podman'],
      ['docker', 'docker'],
      ['kubernetes', 'kubernetes'],
    ]);
    const elsewhere = routesOf({ approach: ['service-level'], engine: ['runc'] });
    expect(elsewhere).toEqual([{ approach: 'service-level', from: 'podman', to: 'docker' }]);
    expect(daemonsFor(elsewhere)).toEqual(['docker']);
  });

  it('starts so many processes, each with a log of its own, without one that is not of the program', () => {
    expect(processesOf(1, 1).args).toEqual(holding(1).args);
    const { args, processes } = processesOf(3, 1);
    expect(processes).toBe(3);
    expect(args.slice(0, 2)).toEqual(['sh', '-c']);
    const commands = (args[2] ?? '').split(' & ');
    expect(commands).toHaveLength(3);
    expect(commands.at(-1)).toMatch(/^exec pulse hold /);
    const logs = commands.map((command) => /--log (\S+)$/.exec(command)?.[1]);
    expect(new Set(logs).size).toBe(3);
  });

  it('writes only where files move at every approach', () => {
    for (const { args } of [holding(8), growingBy(4000, 8)]) {
      expect(args[args.indexOf('--log') + 1]).toMatch(/^\/srv\//);
    }
  });
});
