import { execFileSync } from 'node:child_process';
import { closeSync, mkdirSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { writeStandIns } from './stand-ins.ts';

describe('the stand-in for tar', () => {
  let directory: string;
  let tar: string;
  beforeEach(async () => {
    directory = mkdtempSync(join(tmpdir(), 'ums-tar-'));
    await writeStandIns(directory, '/usr/sbin/criu');
    tar = join(directory, 'bin', 'tar');
    for (const name of ['from', 'to']) mkdirSync(join(directory, name));
  });
  afterEach(() => rmSync(directory, { recursive: true }));

  function call(input: string, ...args: string[]): Buffer {
    const stdin = openSync(input, 'r');
    try {
      return execFileSync(tar, args, { stdio: [stdin, 'pipe', 'inherit'] });
    } finally {
      closeSync(stdin);
    }
  }
  const pack = (): Buffer => call(join(directory, 'from'), '--create', '--gzip', '--directory', '/proc/self/fd/0', '.');
  const unpack = (archive: Buffer): string[] => {
    writeFileSync(join(directory, 'archive'), archive);
    call(join(directory, 'archive'), '--extract', '--gzip', '--directory', join(directory, 'to'));
    return readdirSync(join(directory, 'to'));
  };
  /** What it writes for an empty directory that cannot be written to: such a mount needs privileges. */
  function emptyArchive(): Buffer {
    const script = readFileSync(tar, 'utf8');
    const body = script.slice(script.indexOf('empty() {'), script.indexOf('\n}\n') + 3);
    return execFileSync('/bin/sh', ['-c', `${body}empty`]);
  }

  it('leaves what has content to tar, without compressing it', () => {
    writeFileSync(join(directory, 'from', '.hidden'), 'line\n'.repeat(20_000));
    const archive = pack();
    expect(archive.length).toBeGreaterThan(100_000);
    expect(unpack(archive)).toEqual(['.hidden']);
    expect(readFileSync(join(directory, 'to', '.hidden'), 'utf8')).toBe('line\n'.repeat(20_000));
  });
  it('takes what a CRIU without it has packed', () => {
    writeFileSync(join(directory, 'from', 'file'), 'x');
    expect(unpack(execFileSync('tar', ['--create', '--gzip', '--directory', join(directory, 'from'), '.']))).toEqual([
      'file',
    ]);
  });
  it('writes an archive that tar takes for empty, and knows it again', () => {
    const archive = emptyArchive();
    expect(execFileSync('tar', ['--list', '--gzip'], { input: archive }).toString()).toBe('');
    expect(unpack(archive)).toEqual([]);
  });
});
