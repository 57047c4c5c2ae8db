import { expect, test } from 'vitest';
import { withLoader } from './elf.ts';

const OLD = '/lib64/ld-linux-x86-64.so.2';

/** An ELF file with one program header of this type, and what it points to behind it. */
function program(type: number): Buffer {
  const file = Buffer.alloc(200);
  file.write('\x7fELF', 0, 'latin1');
  file[4] = 2;
  file[5] = 1;
  file.writeBigUInt64LE(64n, 32);
  file.writeUInt16LE(56, 54);
  file.writeUInt16LE(1, 56);
  file.writeUInt32LE(type, 64);
  file.writeBigUInt64LE(120n, 64 + 8);
  file.writeBigUInt64LE(BigInt(OLD.length + 1), 64 + 32);
  file.write(`${OLD}\0the rest`, 120);
  return file;
}

test('a program names the new loader, and nothing else of it changes', () => {
  const before = program(3);
  const after = withLoader(before, '/.ums/lib/ld.so');
  expect(after?.toString('latin1', 120, 120 + OLD.length + 1).replace(/\0+$/, '')).toBe('/.ums/lib/ld.so');
  expect(after?.subarray(0, 120)).toEqual(before.subarray(0, 120));
  expect(after?.subarray(120 + OLD.length + 1)).toEqual(before.subarray(120 + OLD.length + 1));
  expect(before.toString('latin1', 120, 120 + OLD.length)).toBe(OLD);
});

test('a program without a loader needs none', () => {
  expect(withLoader(program(1), '/.ums/lib/ld.so')).toBeUndefined();
});

test.each([
  ['a name that does not fit', () => withLoader(program(3), `/${'x'.repeat(OLD.length)}`)],
  ['a script', () => withLoader(Buffer.from('#!/bin/sh\n'.padEnd(100)), '/l')],
  ['a file cut short', () => withLoader(program(3).subarray(0, 130), '/l')],
])('%s is refused', (_, act) => {
  expect(act).toThrow(expect.objectContaining({ code: 'UMS_E_PREREQUISITE' }));
});
