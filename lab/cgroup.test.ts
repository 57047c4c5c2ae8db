import { expect, test } from 'vitest';
import { findCgroup2, namespaceIds } from './cgroup.ts';

test('the version 2 hierarchy is found alone and beside version 1', () => {
  const pure = '24 1 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate';
  const mixed = [
    '30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw',
    '31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu',
    '40 30 0:36 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw',
  ].join('\n');
  expect(findCgroup2(pure)).toBe('/sys/fs/cgroup');
  expect(findCgroup2(mixed)).toBe('/sys/fs/cgroup/unified');
});

test('a mount of a part of the hierarchy does not count', () => {
  expect(findCgroup2('40 30 0:36 /inner /mnt rw - cgroup2 cgroup2 rw')).toBeUndefined();
  expect(findCgroup2('')).toBeUndefined();
});

test("a process's numbers in nested namespaces are read", () => {
  expect(namespaceIds('Name:\ttini\nNSpid:\t4321\t1\nNSpgid:\t1\n')).toEqual([4321, 1]);
  expect(namespaceIds('')).toEqual([]);
});
