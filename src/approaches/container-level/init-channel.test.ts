import { expect, it } from 'vitest';
import { exitStatusOf, parseInitLine } from './init-channel.ts';
import { parseMounts } from './surroundings.ts';

it('understands what the first process says, and nothing else', () => {
  expect(parseInitLine('reaped 12 256')).toEqual({ kind: 'reaped', pid: 12, status: 256 });
  expect(parseInitLine('signal TERM')).toEqual({ kind: 'signal', name: 'TERM' });
  for (const line of ['', 'reaped x 1', 'signal', 'reaped 1 2 3']) expect(parseInitLine(line)).toBeUndefined();
});

it('shows an end as shells do', () => {
  expect([0, 256, 7 << 8, 9, 15 | 128].map(exitStatusOf)).toEqual([0, 1, 7, 137, 143]);
});

it('reads the table of mounts', () => {
  const line = '30 25 0:26 /sub /sys/fs/cgroup ro,nosuid shared:9 - cgroup2 cgroup rw,nsdelegate';
  expect(parseMounts(`${line}\n`)).toEqual([
    { point: '/sys/fs/cgroup', root: '/sub', type: 'cgroup2', options: ['ro', 'nosuid'] },
  ]);
});
