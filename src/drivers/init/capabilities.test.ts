import { describe, expect, it, test } from 'vitest';
import { capabilitiesIn, grantFindings, groupFindings, groupsIn, lackOf } from './capabilities.ts';

/** /proc/PID/status of a process with CHECKPOINT_RESTORE (40) and SETPCAP (8), without a filter. */
const status = (changes: { effective?: string; seccomp?: number } = {}) =>
  [
    `CapEff:\t${changes.effective ?? '0000010000000100'}`,
    'CapBnd:\t0000010000000100',
    `Seccomp:\t${changes.seccomp ?? 0}`,
    '',
  ].join('\n');

test('capabilities are read by their names', () => {
  expect(capabilitiesIn(status(), 'CapBnd')).toEqual(['SETPCAP', 'CHECKPOINT_RESTORE']);
  expect(capabilitiesIn('', 'CapEff')).toEqual([]);
});

test('only what the destination does not grant is a finding', () => {
  expect(grantFindings(['KILL'], ['MKNOD', 'KILL'])).toEqual([]);
  const [lacking] = grantFindings(['KILL', 'NET_RAW'], ['KILL', 'MKNOD']);
  expect(lacking).toMatchObject({ severity: 'error', id: 'capabilities.missing' });
  expect(lacking?.what).toContain('lacks NET_RAW,');
});

test('other supplementary groups are a finding', () => {
  expect(groupsIn('Gid:\t0\t0\t0\t0\nGroups:\t0 27 \nNStgid:\t1\n')).toEqual(['0', '27']);
  expect(groupsIn('Groups:\t \n')).toEqual([]);
  expect(groupFindings(['0', '27'], ['27', '0'])).toEqual([]);
  expect(groupFindings([], ['0'])).toMatchObject([{ severity: 'error', id: 'groups.differ' }]);
});

describe('what a container lacks', () => {
  it('is nothing with the two capabilities, no filter and a kernel that lets processes trace each other', () => {
    expect(lackOf(status(), undefined)).toBeUndefined();
    expect(lackOf(status(), '0\n')).toBeUndefined();
  });
  it('is a capability', () => {
    expect(lackOf(status({ effective: '0000000000000100' }), undefined)?.problem).toContain('CAP_CHECKPOINT_RESTORE');
    expect(lackOf(status({ effective: '0000010000000000' }), undefined)?.mend).toContain('--cap-add SETPCAP');
  });
  it('is a seccomp filter less', () => {
    expect(lackOf(status({ seccomp: 2 }), undefined)?.problem).toContain('seccomp filter');
  });
  it('is the right to trace where Yama takes it away', () => {
    expect(lackOf(status(), '1\n')?.mend).toContain('SYS_PTRACE');
    expect(lackOf(status({ effective: '0000010000080100' }), '1\n')).toBeUndefined();
  });
});
