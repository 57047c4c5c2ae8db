import { describe, expect, it } from 'vitest';
import { UmsError } from '#src/telemetry/errors.ts';
import { versionAtLeast } from './criu.ts';
import { criuErrorLines, criuFailure, tellingLine } from './errors.ts';

const LOG = `Warn  (criu/image.c:137): Failed to open parent directory
(00.000100) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.010000) Error (criu/proc_parse.c:738): Can't open 11370's mapfile link 7f8df9b6e000: No such device or address
(00.010001) Error (criu/cr-dump.c:1440): Collect mappings (pid: 11370) failed with -1
(00.010002) Error (criu/cr-dump.c:1975): Dumping FAILED.
`;

describe("CRIU's log", () => {
  it('gives its errors without what it does without', () => {
    expect(criuErrorLines(LOG)).toHaveLength(3);
    expect(criuErrorLines(LOG)[0]).toBe(
      "Error (criu/proc_parse.c:738): Can't open 11370's mapfile link 7f8df9b6e000: No such device or address",
    );
  });
  it('is bounded', () => {
    expect(criuErrorLines('Error (a.c:1): x\n'.repeat(1000))).toHaveLength(20);
  });
  it('gives the reason, not its consequence', () => {
    expect(tellingLine(LOG)).toMatch(/^Can't open 11370's mapfile link/);
    expect(tellingLine('(0.1) Error (criu/cr-dump.c:1975): Dumping FAILED.\n')).toBe('Dumping FAILED.');
    expect(tellingLine('nothing')).toBeUndefined();
  });
  it('becomes an error that says it', () => {
    const cause = new UmsError('UMS_E_CHILD', { message: 'runc exited with 1', fault: 'ums' });
    expect(criuFailure('UMS_E_DUMP', LOG, cause).message).toMatch(/could not dump the service: Can't open 11370/);
    expect(criuFailure('UMS_E_RESTORE', '', cause).message).toMatch(
      /could not restore the service: runc exited with 1/,
    );
  });
});

describe('versions', () => {
  it('are compared number by number', () => {
    expect(versionAtLeast('4.10', '4.9')).toBe(true);
    expect(versionAtLeast('4.2.1', '4.2.1')).toBe(true);
    expect(versionAtLeast('4.2', '4.2.1')).toBe(false);
    expect(versionAtLeast('6.18.44-fc', '6.18')).toBe(true);
    expect(versionAtLeast(undefined, '1')).toBe(false);
  });
});
