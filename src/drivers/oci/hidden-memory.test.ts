import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { asSeen, type HiddenMemory, markMappings, requireAsAssumed, seeMappings } from './hidden-memory.ts';
import { unmark } from './mm-image.ts';

const mapping = (range: string, what: string, rss_kib: number, flags: string): string =>
  `${range} ${what}\nSize: ${rss_kib} kB\nRss: ${rss_kib} kB\nSwap: 0 kB\nVmFlags: ${flags} \n`;
const BIG = 8192;
const PLAIN = 'rd wr mr mw me ac';

describe('memory hidden from CRIU', () => {
  it('is large, anonymous, private, of no stack, and nothing special', () => {
    const smaps = [
      mapping('7f0000000000-7f0000800000', 'rw-p 00000000 00:00 0 ', BIG, PLAIN),
      mapping('7f0001000000-7f0001800000', 'rw-p 00000000 00:00 0 ', 100, PLAIN),
      mapping('7f0002000000-7f0002800000', 'rw-p 00000000 00:00 0 ', BIG, `${PLAIN} lo`),
      mapping('7f0003000000-7f0003800000', 'rw-s 00000000 00:01 7  /dev/zero (deleted)', BIG, `${PLAIN} sh`),
      mapping('7f0004000000-7f0004800000', 'rw-p 00000000 fe:00 9  /lib/libc.so', BIG, PLAIN),
      mapping('7f0005000000-7f0005800000', 'rw-p 00000000 00:00 0 ', BIG, PLAIN),
      mapping('0abe4000-0b3e4000', 'rw-p 00000000 00:00 0   [heap]', BIG, PLAIN),
      mapping('7ffd00000000-7ffd00800000', 'rw-p 00000000 00:00 0   [stack]', BIG, `${PLAIN} gd`),
    ].join('');
    const { text, areas } = markMappings(smaps, [0x7f0005000100]);
    expect(areas).toEqual([
      { first: 0x7f0000000, count: 2048 },
      { first: 0xabe4, count: 2048 },
    ]);
    const whole = text
      .replaceAll(' dp \n', ' \n')
      .replace('7f0000000000-7f0000001000', '7f0000000000-7f0000800000')
      .replace('0abe4000-0abe5000', '0abe4000-0b3e4000');
    expect(whole).toBe(smaps);
    expect(text.match(/ dp /g)).toHaveLength(2);
  });
  it('is not what a stack would grow into', () => {
    const big = mapping('7f0000000000-7f0000800000', 'rw-p 00000000 00:00 0 ', BIG, PLAIN);
    const stack = (at: string): string => mapping(`${at}-7f0001000000`, 'rw-p 00000000 00:00 0 ', 8, `${PLAIN} gd`);
    expect(markMappings(`${big}${stack('7f0000800000')}`, []).areas).toEqual([]);
    expect(markMappings(`${big}${stack('7f0000801000')}`, []).areas).toHaveLength(1);
  });
});

const maps = (): string => readFileSync(`/proc/${process.pid}/maps`, 'latin1');
const kernel = { smaps: (pid: number): Promise<string> => readFile(`/proc/${pid}/smaps`, 'latin1') };
const assumed = (lines: string[]): HiddenMemory => ({
  pid: process.pid,
  inside: 1,
  areas: [],
  present: Promise.resolve([]),
  assumed: lines,
});

describe('mappings that were seen before the freeze', () => {
  it('are named alike in maps and smaps, and stand for the flags', async () => {
    // This process maps and unmaps all the time, so a quiet one is looked at.
    const child = spawn('sleep', ['60']);
    try {
      const { pid = 0 } = child;
      const seen = (await seeMappings([pid])).get(pid) ?? new Map();
      const text = asSeen(readFileSync(`/proc/${pid}/maps`, 'latin1'), seen) ?? '';
      const smaps = readFileSync(`/proc/${pid}/smaps`, 'latin1');
      const wanted = smaps.split('\n').filter((line) => /^([0-9a-f]+-|VmFlags:)/.test(line));
      expect(text.split('\n').filter((line) => /^([0-9a-f]+-|VmFlags:)/.test(line))).toEqual(wanted);
    } finally {
      child.kill('SIGKILL');
    }
  });
  it('are of no use when there is a new one', async () => {
    const seen = new Map((await seeMappings([process.pid])).get(process.pid));
    const [first = ''] = maps().split('\n');
    seen.delete(first);
    expect(asSeen(maps(), seen)).toBeUndefined();
  });
  it('must turn out to be as they were', async () => {
    await expect(requireAsAssumed([assumed(['7f00-7f01 rw-p VmFlags: rd wr'])], kernel)).rejects.toMatchObject({
      code: 'UMS_E_DUMP',
    });
    await expect(requireAsAssumed([{ ...assumed([]), assumed: undefined }], kernel)).resolves.toBeUndefined();
  });
});

describe("CRIU's image of an address space", () => {
  let directory: string;
  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'ums-mm-'));
  });
  afterEach(() => rmSync(directory, { recursive: true }));

  const number = (value: number): number[] =>
    value < 128 ? [value] : [(value % 128) + 128, ...number(Math.floor(value / 128))];
  const field = (id: number, value: number): number[] => [...number(id * 8), ...number(value)];
  const vma = (start: number, flags: number, bytes = 4096): number[] => {
    const body = [
      ...field(1, start),
      ...field(2, start + bytes),
      ...field(5, 3),
      ...field(6, flags),
      ...field(7, 0x201),
    ];
    return [...number(14 * 8 + 2), ...number(body.length), ...body];
  };
  const image = (...vmas: number[][]): string => {
    const body = Buffer.from([...field(1, 0x400000), ...vmas.flat(), ...field(15, 1)]);
    const head = Buffer.alloc(12);
    head.writeUInt32LE(0x54564319, 0);
    head.writeUInt32LE(0x57492820, 4);
    head.writeUInt32LE(body.length, 8);
    const path = join(directory, 'mm-1.img');
    writeFileSync(path, Buffer.concat([head, body]));
    return path;
  };

  it('gets its mappings back as they were, and no others', async () => {
    const GIB = 2 ** 30;
    // The end of the first takes more bytes when it is right.
    const before = image(vma(0xabe4000, 0x22, 64 * GIB), vma(0x7f0001000000, 0x28), vma(0x7f0002000000, 0x4022, GIB));
    const expected = readFileSync(before);
    const path = image(vma(0xabe4000, 0x28), vma(0x7f0001000000, 0x28), vma(0x7f0002000000, 0x4028));
    const ends = [0xabe4000 + 64 * GIB, 0x7f0002000000 + GIB] as const;
    await unmark(
      path,
      new Map([
        [0xabe4000, ends[0]],
        [0x7f0002000000, ends[1]],
      ]),
    );
    expect(readFileSync(path)).toEqual(expected);
  });
  it('is refused when it does not hold what was hidden', async () => {
    const path = image(vma(0x7f0000000000, 0x22));
    await expect(unmark(path, new Map([[0x7f0000000000, 0x7f0000001000]]))).rejects.toThrow(/is not as this version/);
    await expect(unmark(path, new Map([[0x1000, 0x2000]]))).rejects.toThrow(/is not as this version/);
    writeFileSync(path, 'rubbish that is long enough');
    await expect(unmark(path, new Map())).rejects.toThrow(/is not as this version/);
  });
});
