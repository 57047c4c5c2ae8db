import { describe, expect, it } from 'vitest';
import { parseCgroups } from './cgroup.ts';

describe('control groups of a process', () => {
  it('are read in either version, and in both at once', () => {
    expect(parseCgroups('0::/libpod_parent/libpod-1\n')).toEqual({
      unified: '/libpod_parent/libpod-1',
      freezer: undefined,
    });
    expect(parseCgroups('9:name=systemd:/\n6:freezer:/x\n4:memory,freezer:/y:z\n')).toEqual({
      unified: undefined,
      freezer: '/y:z',
    });
    expect(parseCgroups('6:freezer:/\n0::/a\n')).toEqual({ unified: '/a', freezer: '/' });
    expect(parseCgroups('')).toEqual({ unified: undefined, freezer: undefined });
  });
});
