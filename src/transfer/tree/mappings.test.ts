import { expect, test } from 'vitest';
import { deviceNumber, parseMappings, sharedWritableMappings } from './mappings.ts';

const MAPS = `00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/dbus-daemon
7f0000000000-7f0000001000 rw-s 00000000 00:2c 1234                       /data/mapped file
7f0000002000-7f0000003000 r--s 00000000 00:2c 1235                       /data/read only
7f0000004000-7f0000005000 -w-s 00000000 103:00 99                        /data/old (deleted)
7f0000006000-7f0000007000 rw-s 00000000 00:01 5                          anon_inode:[perf_event]
7ffc0f5d2000-7ffc0f5f3000 rw-p 00000000 00:00 0                          [stack]
`;

test('finds what is mapped shared and writable', () => {
  expect(parseMappings(MAPS)).toEqual([
    { range: '7f0000000000-7f0000001000', identity: '44:1234', path: '/data/mapped file' },
    { range: '7f0000004000-7f0000005000', identity: '66304:99', path: '/data/old' },
  ]);
});

test('device numbers are those of stat', () => {
  expect(deviceNumber(0x103n, 0n)).toBe(0x10300n);
  expect(deviceNumber(8n, 0x12345n)).toBe(0x12300845n);
});

test('a process that is gone has none', async () => {
  await expect(sharedWritableMappings([2 ** 22 + 1])).resolves.toEqual(new Set());
});
