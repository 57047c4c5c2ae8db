import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { keeperOfSystemV, sharedBetween } from './shared.ts';

/** Real processes with real descriptors: what is looked at is the kernel's account of them. */
let directory: string;
let children: ChildProcess[];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'ums-shared-'));
  children = [];
});

afterEach(() => {
  for (const child of children) child.kill('SIGKILL');
  rmSync(directory, { recursive: true });
});

/** Descriptors that this process was started with and a child would have, too. */
const INHERITED = 512;

/** A shell that does this, says so, and waits. */
async function shell(script: string): Promise<number> {
  const nothing = openSync('/dev/null', 'r+');
  const stdio = ['pipe' as const, 'pipe' as const, ...Array.from({ length: INHERITED }, () => nothing)];
  const child = spawn('sh', ['-c', `${script}\necho ready\nread word`], { cwd: directory, stdio });
  closeSync(nothing);
  children.push(child);
  await new Promise((resolve) => child.stdout?.once('data', resolve));
  return child.pid ?? 0;
}

describe('what two containers have open together', () => {
  it('is nothing for files, and pipes of their own', async () => {
    const script = 'exec 3>>file 4</dev/null; mkfifo "$$"; exec 5<>"$$"';
    expect(sharedBetween([[await shell(script)], [await shell(script)]])).toBeUndefined();
  });

  it('is a named pipe', async () => {
    execFileSync('mkfifo', [join(directory, 'pipe')]);
    const groups = [[await shell('exec 3<>pipe')], [await shell('exec 3<>pipe')]];
    expect(sharedBetween(groups)).toMatch(/named pipe .*\/pipe/);
    expect(sharedBetween([groups.flat()])).toBeUndefined();
  });

  it('is a file that has no name any more', async () => {
    const one = await shell('exec 3>gone');
    const other = await shell('exec 3>gone; rm gone');
    expect(sharedBetween([[one], [other]])).toMatch(/deleted file .*gone/);
  });

  it('is not asked of processes that have ended', () => {
    expect(sharedBetween([[2 ** 30], [2 ** 30 + 1]])).toBeUndefined();
    expect(keeperOfSystemV([[2 ** 30], [2 ** 30 + 1]])).toBe(0);
  });
});
