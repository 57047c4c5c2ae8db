import { describe, expect, it } from 'vitest';
import { migrationSchema } from '#src/coordination/schema.ts';
import { parsePulseLog, type PulseLog } from '../measure/pulse-log.ts';
import { awayTime } from './carry.ts';
import { readFigures } from './figures.ts';
import { judge as judgeGrowing } from './growing.ts';
import { growthPlot, phasesPlot, tableOf } from './judge.ts';
import { judge as judgeMemhog } from './memhog.ts';
import { frozenAt, phasesOf } from './phases.ts';
import { judge as judgeProcesses } from './processes.ts';
import type { Run } from './stage.ts';
import { judge as judgeTable1 } from './table1.ts';

const migration = migrationSchema.parse({
  id: 'm-1',
  role: 'source',
  state: 'done',
  in_doubt: false,
  service: 'paper',
  engine: 'kubernetes',
  source: 'alpha',
  destination: 'beta',
  technique: 'cold',
  approach: 'orchestrator-level',
  started_at: 100_000,
  ended_at: 101_000,
  downtime_ms: 200,
  total_ms: 1000,
  bytes_on_wire: 1,
  state_bytes: 1,
  steps: [
    { name: 'planned', start_ms: 0, duration_ms: 10 },
    { name: 'checking', start_ms: 10, duration_ms: 40 },
    { name: 'reserving', start_ms: 50, duration_ms: 100 },
    { name: 'freezing', start_ms: 150, duration_ms: 50 },
    { name: 'dumping', start_ms: 200, duration_ms: 100 },
    { name: 'restoring', start_ms: 300, duration_ms: 200 },
  ],
  memory: null,
  error: null,
});

function run(of: Partial<Run>): Run {
  const phases = phasesOf(migration, null, 0, 1000);
  const times = { runs_ms: 1000, total_ms: 1200, command_ms: 1200, downtime_ms: 300 };
  const route = { approach: 'orchestrator-level', from: 'kubernetes', to: 'kubernetes' } as const;
  const told = { problems: [], bytes_on_wire: 1, migration, inner: null };
  return { ...route, ...times, ...told, at: 128, repetition: 1, technique: 'cold', phases, ...of };
}

/** The log of a process that stood still once. */
const gapped = (from_ms: number, to_ms: number): PulseLog =>
  parsePulseLog(`late 7 ${(to_ms / 1000).toFixed(6)} ${(to_ms - from_ms) * 1000} 0\n`);

const ok = (checks: readonly { name: string; ok: boolean }[]): [string, boolean][] =>
  checks.map((check) => [check.name, check.ok]);

const figures = readFigures();
const service = { approach: 'service-level', from: 'podman', to: 'docker' } as const;

describe('what the paper’s experiments are held to', () => {
  it('compares Table I only between systems that the paper has', () => {
    const runs = [run({}), run({ approach: 'container-level', runs_ms: 5000 }), run({ ...service, runs_ms: 1 })];
    const there = run({ approach: 'service-level', runs_ms: 1000 });
    expect(judgeTable1({ runs: [there], failures: [] }, figures)[0]).toMatchObject({ limit: 5, ok: true });
    expect(ok(judgeTable1({ runs, failures: [] }, figures))).toEqual([
      ["orchestrator-level, Kubernetes: the paper's time / ours", true],
      ["container-level, Kubernetes: the paper's time / ours", false],
      ['moves that failed', true],
      ['moves after which something was wrong', true],
    ]);
    // Another amount of memory is not the paper's table either.
    expect(judgeTable1({ runs: [run({ at: 8 })], failures: [] }, figures)).toHaveLength(2);
  });

  it('tells moves that failed, and those after which something was wrong', () => {
    const checks = judgeGrowing({ runs: [run({ problems: ['it runs twice'] })], failures: ['one'] }, figures);
    expect(checks.slice(-2).map(({ ok: good }) => good)).toEqual([false, false]);
  });

  it('compares the total by memory where the paper has one', () => {
    const runs = [run({ at: 0 }), run({ at: 128 }), run({ at: 1024, total_ms: 20_000 })];
    expect(ok(judgeMemhog({ runs, failures: [] }, figures)).slice(0, -2)).toEqual([
      ["orchestrator-level, 128 MiB: total, s (limit: the paper's)", true],
      ["orchestrator-level, 1024 MiB: total, s (limit: the paper's)", false],
    ]);
  });

  it('compares many processes with one by the command alone', () => {
    const runs = [
      run({ ...service, at: 1, command_ms: 1000, total_ms: 9000 }),
      run({ ...service, at: 8, command_ms: 2000, total_ms: 10_000 }),
    ];
    expect(judgeProcesses({ runs, failures: [] })[0]).toMatchObject({ value: 2, limit: 1.5, ok: false });
    expect(judgeProcesses({ runs: runs.slice(1), failures: [] })).toHaveLength(2);
  });

  it('shows the paper beside ours', () => {
    const runs = [run({ at: 128 }), run({ at: 1024 })];
    const plot = growthPlot(runs, { title: '', subtitle: '', x: '', y: '' }, 'total_ms', figures.memhog);
    expect(plot.panels[0]?.series.map(({ points }) => points.map(({ x, y }) => [x, y]))).toEqual([
      [
        [128, 1.2],
        [1024, 1.2],
      ],
      [
        [128, figures.memhog[128]?.['orchestrator-level']],
        [1024, figures.memhog[1024]?.['orchestrator-level']],
      ],
    ]);
    expect(tableOf(runs, 'MiB', 'total_ms', () => '17.40')).toMatch(/1024 .*17\.40/);
  });
});

describe('where the time goes', () => {
  it('is told by the steps, and what no step accounts for is the rest', () => {
    const phases = phasesOf(migration, null, 300, 1000);
    expect(phases).toMatchObject({ checking: 50, reserving: 400, dumping: 150, restoring: 200, 'the rest': 200 });
    const bars = phasesPlot([run({})], { title: '', subtitle: '' }, String).groups[0]?.bars[0]?.parts ?? [];
    expect(bars.reduce((sum, { value }) => sum + value, 0)).toBeCloseTo(1);
  });

  it('is told by the agent in the capsule while the hosts’ agents only follow', () => {
    const outer = { role: 'source', steps: [{ name: 'nested', start_ms: 0, duration_ms: 900 }] } as const;
    const inner = {
      role: 'destination',
      steps: [
        { name: 'reserved', start_ms: 0, duration_ms: 100 },
        { name: 'restored', start_ms: 100, duration_ms: 200 },
      ],
    } as const;
    const told = phasesOf({ ...outer, steps: [...outer.steps] }, { ...inner, steps: [...inner.steps] }, 0, 1000);
    expect(told).toMatchObject({ copying: 100, restoring: 200, 'the rest': 700 });
  });

  it('is away from the first process that stood still to the last that went on', () => {
    const at = 100_300;
    expect(frozenAt(migration)).toBe(at);
    const logs = [gapped(at - 50, at + 40), gapped(at - 40, at + 70)];
    const moved = { moved: { migration }, inner: null };
    const away = awayTime(logs, { from: at - 1000, to: at + 1000 }, moved);
    expect(away?.from_ms).toBeCloseTo(at - 50);
    expect(away?.to_ms).toBeCloseTo(at + 70);
    expect(awayTime([...logs, parsePulseLog('')], { from: 0, to: at }, moved)).toBeUndefined();
  });
});
