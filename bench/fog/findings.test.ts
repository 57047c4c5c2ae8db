import { describe, expect, it } from 'vitest';
import type { Technique } from '../cases.ts';
import { findingsOf } from './findings.ts';
import type { FogFigures, NineMetrics } from './metrics.ts';
import { type ConfigurationName, CONFIGURATIONS, readPaper } from './paper.ts';

const NONE: NineMetrics = {
  pre_dump_ms: 0,
  pre_dump_transfer_ms: 0,
  dump_ms: 0,
  dump_transfer_ms: 0,
  resume_ms: 0,
  faulted_transfer_ms: 0,
  pre_dump_bytes: 0,
  dump_bytes: 0,
  faulted_bytes: 0,
};

function runOf(
  configuration: ConfigurationName,
  technique: Technique,
  figures: readonly [number, number, number],
): FogFigures {
  const [total_ms, downtime_ms, bytes] = figures;
  const run = {
    configuration,
    by: 'ums',
    technique,
    repetition: 1,
    metrics: NONE,
    total_ms,
    downtime_ms,
    bytes,
  } as const;
  return { ...run, degraded_ms: 0, continuous: true, memory_ok: true };
}

/** As the paper saw it. */
const PAPER: Record<Technique, (name: ConfigurationName) => [number, number, number]> = {
  cold: () => [60_000, 59_000, 75e6],
  'pre-copy': (name) => [90_000, name === 'B' ? 40_000 : 3000, 110e6],
  'post-copy': () => [80_000, 2000, 75e6],
  hybrid: () => [120_000, 2000, 110e6],
};

function runsWith(
  change: (name: ConfigurationName, technique: Technique, own: [number, number, number]) => [number, number, number],
) {
  const techniques = ['cold', 'pre-copy', 'post-copy', 'hybrid'] as const;
  return CONFIGURATIONS.flatMap((name) =>
    techniques.map((technique) => runOf(name, technique, change(name, technique, PAPER[technique](name)))),
  );
}

describe("the fog paper's findings", () => {
  it('hold for figures like its own', () => {
    const findings = findingsOf(runsWith((_name, _technique, own) => own));
    expect(findings.map((finding) => finding.holds)).toEqual(findings.map(() => true));
  });

  it('are overturned by figures that say otherwise', () => {
    const better = runsWith((name, technique, own) => {
      if (technique === 'hybrid') return [65_000, name === 'B' ? 5000 : 300, 76e6];
      if (technique === 'pre-copy') return [70_000, 300, 90e6];
      return own;
    });
    const holds = Object.fromEntries(
      findingsOf(better).map((finding) => [finding.claim.split(' ').slice(0, 4).join(' '), finding.holds]),
    );
    expect(holds).toMatchObject({
      'hybrid has the highest': false,
      "hybrid's downtime is low": false,
      'pre-copy collapses in B,': false,
    });
  });

  it('that one is the highest does not hold when another is a little higher', () => {
    const close = runsWith((_name, technique, own) => {
      if (technique === 'hybrid') return [78_300, 370, 99e6];
      return technique === 'pre-copy' ? [80_400, 1490, 100e6] : [64_000, own[1], own[2]];
    });
    const finding = findingsOf(close).find(({ claim }) => claim.startsWith('hybrid has the highest'));
    expect(finding).toMatchObject({ holds: false, because: expect.stringContaining('hardly a difference') });
  });

  it('are not judged without the figures', () => {
    expect(findingsOf([]).every((finding) => finding.holds === undefined)).toBe(true);
  });
});

describe("the paper's configurations", () => {
  it('are read from its data', () => {
    const { configurations, state_mib } = readPaper();
    expect(state_mib).toBe(72);
    expect(configurations[1]).toMatchObject({ name: 'B', rate: '11.34mbit', dirty_kb_s: 500 });
    expect(configurations[1]?.delay_ms).toBeCloseTo(61.5, 1);
  });
});
