import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type LogFile, placeLog, reserveLog, saveLog } from './log-file.ts';

const LINES = Array.from({ length: 100 }, (_, at) => `line ${at}`);
let directory: string;
let source: LogFile;
let target: LogFile;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'ums-log-'));
  source = { path: join(directory, 'source'), image: 'log.img', limit_bytes: 10_000 };
  target = { ...source, path: join(directory, 'target') };
  writeFileSync(source.path, `${LINES.join('\n')}\n`);
});
afterEach(() => rmSync(directory, { recursive: true }));

const lines = () =>
  readFileSync(target.path, 'utf8')
    .split('\n')
    .filter((line) => line !== '');

describe('the log of a container', () => {
  it('moves whole when it is short', async () => {
    await saveLog(source, directory);
    await placeLog(target, directory, false);
    expect(lines()).toEqual(LINES);
  });

  it('moves from a whole line on when it is long', async () => {
    await saveLog({ ...source, limit_bytes: 100 }, directory);
    await placeLog(target, directory, false);
    expect(lines()).toEqual(LINES.slice(-lines().length));
    expect(lines().length).toBeGreaterThan(5);
  });

  it('is placed without changing the size that the engine has seen, its last lines last', async () => {
    const reserving: LogFile = { ...target, reserves: true };
    await reserveLog(reserving);
    const { size, ino } = statSync(target.path);
    await saveLog(source, directory);
    await placeLog(reserving, directory, true);
    expect(statSync(target.path)).toMatchObject({ size, ino });
    expect(lines()).toEqual(LINES);
    expect(readFileSync(target.path, 'utf8').endsWith('\nline 99\n')).toBe(true);
  });

  it('loses its oldest lines where its place is too small', async () => {
    const small: LogFile = { ...target, limit_bytes: 64, reserves: true };
    await reserveLog(small);
    await saveLog(source, directory);
    await placeLog(small, directory, true);
    expect(statSync(target.path).size).toBe(64);
    expect(lines()).toEqual(LINES.slice(-lines().length));
  });

  it('is nothing that must be there', async () => {
    await saveLog({ ...source, path: join(directory, 'none') }, directory);
    await placeLog(target, directory, false);
    expect(() => statSync(target.path)).toThrow(/ENOENT/);
  });
});
