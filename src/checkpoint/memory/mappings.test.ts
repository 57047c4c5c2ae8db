import { describe, expect, it } from 'vitest';
import { mappings, parseMaps } from './mappings.ts';

const MAPS = `55d0f6a00000-55d0f6a24000 r-xp 00002000 fe:00 1234                       /usr/bin/perl
55d0f6b00000-55d0f6b10000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000021000 rw-p 00000000 00:00 0 
7f0000021000-7f0000031000 ---p 00000000 00:00 0                          [anon: arena of a name]
7f0010000000-7f0010100000 rw-s 00000000 00:01 77                         /dev/zero (deleted)
7f0020000000-7f0020100000 rw-p 00000000 00:05 9                          /dev/zero
7f0030000000-7f0030200000 rw-p 00000000 00:0f 3                          /anon_hugepage (deleted)
7f0040000000-7f0040001000 r--p 00000000 fe:00 5                          /srv/a file of spaces
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
7ffd00100000-7ffd00104000 r--p 00000000 00:00 0                          [vvar]
7ffd00106000-7ffd00108000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
`;

const SMAPS = `7f0000000000-7f0000021000 rw-p 00000000 00:00 0 
Size:                132 kB
Rss:                   8 kB
VmFlags: rd wr mr mw me ac lo 
7f0000031000-7f0000041000 rw-p 00000000 00:00 0 
VmFlags: rd wr mr mw me ac 
7f0000051000-7f0000061000 rw-p 00000000 00:00 0 
VmFlags: rd wr mr mw me dp 
`;

describe('mappings', () => {
  it('calls lazy what CRIU can leave out of a lazy dump', () => {
    const found = parseMaps(MAPS);
    expect(found).toHaveLength(11);
    const lazy = found.filter((mapping) => mapping.lazy).map((mapping) => (mapping.first * 4096).toString(16));
    expect(lazy).toEqual(['55d0f6b00000', '7f0000000000', '7f0000021000', '7ffd00000000']);
    expect(found.filter((mapping) => mapping.stack)).toHaveLength(1);
    expect(found.filter((mapping) => mapping.shared)).toHaveLength(1);
    expect(found.filter((mapping) => mapping.executable)).toHaveLength(2);
    expect(found[2]).toMatchObject({ first: 0x7f0000000, count: 0x21, file: false, shared: false });
  });

  it('takes locked memory, and memory that may be dropped, out', () => {
    expect(parseMaps(SMAPS).map((mapping) => mapping.lazy)).toEqual([false, true, false]);
  });

  it('finds nothing in a process that has vanished, and something in this one', async () => {
    expect(await mappings(2 ** 22 + 1)).toEqual([]);
    expect((await mappings(process.pid)).some((mapping) => mapping.stack && mapping.lazy)).toBe(true);
  });
});
