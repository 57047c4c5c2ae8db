import { expect, test } from 'vitest';
import type { ChildEnd } from './child.ts';
import { isHarmlessWhileLive, judge } from './tar.ts';

test.each([
  'tar: ./a: file changed as we read it',
  'tar: ./a: File removed before we read it',
  'tar: ./a: Cannot stat: No such file or directory',
  'tar: ./a: Warning: Cannot open: No such file or directory',
  'tar: ./a/b: Cannot stat: Not a directory',
  'tar: ./a: Warning: Cannot file_has_acl_at: No such file or directory',
  'tar: ./a: File shrank by 123 bytes; padding with zeros',
  'tar: ./a: Cannot open: Too many levels of symbolic links',
  'tar: Exiting with failure status due to previous errors',
])('harmless while the service runs: %s', (line) => {
  expect(isHarmlessWhileLive(line)).toBe(true);
});

test.each([
  'tar: ./a: Read error at byte 0, while reading 512 bytes: Input/output error',
  'tar: ./a: Cannot open: Permission denied',
  'tar: ./a: Cannot stat: No such file or directory\\nx: Cannot open: Input/output error',
  'tar: ./file changed as we read it: Cannot open: Input/output error',
])('never harmless: %s', (line) => {
  expect(isHarmlessWhileLive(line)).toBe(false);
});

function end(parts: Partial<ChildEnd>): ChildEnd {
  return { code: 0, signal: undefined, complaints: [], ...parts };
}

test('no complaint and a good exit code is success', () => {
  expect(judge(end({}), 'writing', 'destination', [0])).toBeUndefined();
});

test('a complaint is a failure whatever the exit code, as tar only warns of lost attributes', () => {
  const line = "tar: setxattrat: Cannot set 'user.x' extended attribute for file './f': Operation not supported";
  const failure = judge(end({ complaints: [line] }), 'writing', 'destination', [0]);
  expect(failure?.code).toBe('UMS_E_TRANSFER');
  expect(failure?.message).toContain(line);
});

test.each([
  'Cannot write: No space left on device',
  'Cannot mkdir: Disk quota exceeded',
  'Wrote only 512 of 1024 bytes',
])('%s is a lack of room', (reason) => {
  const complaints = ['tar: ./a: Cannot utime: Operation not permitted', `tar: ./b: ${reason}`];
  const failure = judge(end({ code: 2, complaints }), 'writing', 'destination', [0]);
  expect(failure?.code).toBe('UMS_E_NO_ROOM');
  expect(failure?.message).toContain(reason);
});

test('a killed program without a word is a failure', () => {
  const failure = judge(end({ code: undefined, signal: 'SIGKILL' }), 'writing', 'destination', [0]);
  expect(failure?.message).toContain('SIGKILL');
});
