import { expect, test } from 'vitest';
import { lastLines } from './logs.ts';
import { countTap, failuresInTap, summaryLines } from './testing.ts';

test('tests that did not run count as failed', () => {
  const tap = '# tests 6\n# suites 0\n# pass 2\n# fail 1\n# cancelled 1\n# skipped 1\n# todo 1\n';
  expect(countTap(tap)).toEqual({ passed: 2, failed: 4 });
  expect(countTap('')).toEqual({ passed: 0, failed: 0 });
});

test('the summary names every part with its verdict', () => {
  const lines = summaryLines([
    { name: 'types', passed: 1, failed: 0, duration_ms: 1500 },
    { name: 'kill.e2e.ts', passed: 3, failed: 1, duration_ms: 61_000 },
  ]);
  expect(lines[0]).toMatch(/^ok +types +1 passed +0 failed +1\.5 s$/);
  expect(lines[1]).toMatch(/^FAIL kill\.e2e\.ts +3 passed +1 failed +61\.0 s$/);
});

/** A failed test as TAP tells it. */
function report(name: string, indent: string, details: string[]): string {
  const lines = [`not ok 1 - ${name}`, '  ---', ...details.map((line) => `  ${line}`), '  ...', ''];
  return lines.map((line) => `${indent}${line}`).join('\n');
}

test('the report tells which tests failed by themselves, and why', () => {
  const tap =
    report('inner', '    ', ["failureType: 'testCodeFailure'", "error: 'it took 1200 ms'", "code: 'ERR_ASSERTION'"]) +
    report('long', '    ', ["failureType: 'testCodeFailure'", 'error: |-', '  first line', '  second line']) +
    report('outer', '', ["failureType: 'subtestsFailed'", "error: '2 subtests failed'"]);
  const failures = failuresInTap(tap);
  expect(failures).toEqual(['inner: it took 1200 ms', 'long: first line']);
  const lines = summaryLines([{ name: 'kill.e2e.ts', passed: 0, failed: 2, duration_ms: 1, failures }]);
  expect(lines[1]).toBe('       inner: it took 1200 ms');
});

test('the last lines of a log', () => {
  expect(lastLines('a\nb\nc\n', 2)).toBe('b\nc\n');
  expect(lastLines('a\nb', 5)).toBe('a\nb\n');
  expect(lastLines('a\n', 0)).toBe('');
});
