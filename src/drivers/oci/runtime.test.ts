import { mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { versionText } from './runtime.ts';

describe('the version of a program', () => {
  let directory: string;
  let program: string;
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'ums-version-'));
    program = join(directory, 'engine');
  });
  afterAll(() => rm(directory, { recursive: true, force: true }));

  /** As a package manager does it: a new file takes the old one's name. Each start leaves a line behind. */
  async function install(version: string): Promise<void> {
    await writeFile(`${program}.new`, `#!/bin/sh\necho started >>${directory}/starts\necho ${version}\n`, {
      mode: 0o755,
    });
    await rename(`${program}.new`, program);
  }

  const starts = async () => (await readFile(join(directory, 'starts'), 'utf8')).trim().split('\n').length;

  it('is asked for once, and again when the program was replaced', async () => {
    await install('1.0.0');
    expect(await versionText(program)).toBe('1.0.0\n');
    expect(await versionText(program)).toBe('1.0.0\n');
    expect(await starts()).toBe(1);
    await install('1.0.1');
    expect(await versionText(program)).toBe('1.0.1\n');
    expect(await starts()).toBe(2);
  });

  it('is not known of a program that fails, which is asked again', async () => {
    await writeFile(program, `#!/bin/sh\nexit 3\n`);
    await expect(versionText(program)).rejects.toMatchObject({ code: 'UMS_E_CHILD' });
    await install('2.0.0');
    expect(await versionText(program)).toBe('2.0.0\n');
  });
});
