import assert from 'node:assert/strict';
import { mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { versionText } from './runtime.ts';

void describe('the version of a program', () => {
  let directory: string;
  let program: string;
  before(async () => {
    directory = await mkdtemp(join(tmpdir(), 'ums-version-'));
    program = join(directory, 'engine');
  });
  after(() => rm(directory, { recursive: true, force: true }));

  /** As a package manager does it: a new file takes the old one's name. Each start leaves a line behind. */
  async function install(version: string): Promise<void> {
    await writeFile(`${program}.new`, `#!/bin/sh\necho started >>${directory}/starts\necho ${version}\n`, {
      mode: 0o755,
    });
    await rename(`${program}.new`, program);
  }

  const starts = async () => (await readFile(join(directory, 'starts'), 'utf8')).trim().split('\n').length;

  void it('is asked for once, and again when the program was replaced', async () => {
    await install('1.0.0');
    assert.equal(await versionText(program), '1.0.0\n');
    assert.equal(await versionText(program), '1.0.0\n');
    assert.equal(await starts(), 1);
    await install('1.0.1');
    assert.equal(await versionText(program), '1.0.1\n');
    assert.equal(await starts(), 2);
  });

  void it('is not known of a program that fails, which is asked again', async () => {
    await writeFile(program, `#!/bin/sh\nexit 3\n`);
    await assert.rejects(versionText(program), { code: 'UMS_E_CHILD' });
    await install('2.0.0');
    assert.equal(await versionText(program), '2.0.0\n');
  });
});
