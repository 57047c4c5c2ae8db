import { describe, expect, it } from 'vitest';
import { compareHosts, type HostFingerprint } from './fingerprint.ts';

const host: HostFingerprint = {
  arch: 'x64',
  kernel: '6.12.5-amd64',
  cpuModel: 'CPU',
  cpuFlags: ['avx2', 'hypervisor', 'sse4_2'],
  criuVersion: '4.2.1',
  criuWorks: true,
  criuFeatures: {},
  memoryAvailable_bytes: 1,
  diskAvailable_bytes: 1,
  stagingAvailable_bytes: 1,
};
const ids = (source: Partial<HostFingerprint>, destination: Partial<HostFingerprint>) =>
  compareHosts({ ...host, ...source }, { ...host, ...destination }).map(
    (finding) => `${finding.severity} ${finding.id}`,
  );

describe('comparing two hosts', () => {
  it('finds nothing between equals, or when the destination has more', () => {
    expect(ids({}, {})).toEqual([]);
    expect(ids({}, { cpuFlags: [...host.cpuFlags, 'avx512f'], criuVersion: '4.3', kernel: '6.18.1' })).toEqual([]);
  });
  it('refuses another architecture, without a list of flags', () => {
    expect(ids({}, { arch: 'arm64', cpuFlags: ['asimd'] })).toEqual(['error cpu.arch']);
  });
  it('refuses a CPU that lacks an instruction, and ignores what only the kernel uses', () => {
    expect(ids({}, { cpuFlags: ['hypervisor', 'sse4_2'] })).toEqual(['error cpu.flags']);
    expect(ids({}, { cpuFlags: ['avx2', 'sse4_2'] })).toEqual([]);
  });
  it('refuses an older CRIU and a missing one', () => {
    expect(ids({}, { criuVersion: '4.1.1' })).toEqual(['error criu.older']);
    expect(ids({ criuVersion: '4.9' }, { criuVersion: '4.10' })).toEqual([]);
    expect(ids({}, { criuVersion: '' })).toEqual(['error criu.missing']);
    expect(ids({ criuWorks: false }, {})).toEqual(['error criu.broken']);
  });
  it('warns of an older kernel', () => {
    expect(ids({}, { kernel: '6.1.0' })).toEqual(['warning kernel.older']);
  });
});
