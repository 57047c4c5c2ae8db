import { mkdir, mkdtemp, rename, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { expect, it } from 'vitest';
import { run } from '#src/telemetry/exec.ts';
import { APP_PARTS, copyPackages, copyParts } from './app.ts';
import { compileAhead, compiledEnvironment } from './compiled.ts';

const CHECKOUT = join(import.meta.dirname, '..', '..', '..');

it('is used where it was carried to, by an agent and by a command line', { timeout: 120_000 }, async () => {
  const root = await mkdtemp(join(tmpdir(), 'ums-compiled-'));
  try {
    const made = join(root, 'made');
    const flags = ['--max-semi-space-size=1'];
    await mkdir(made);
    await copyParts(CHECKOUT, join(made, 'app'), APP_PARTS);
    await copyPackages(CHECKOUT, join(made, 'app'));
    await compileAhead(join(made, 'app'), join(made, 'compiled'), flags);
    const there = join(root, 'there');
    await rename(made, there);
    for (const [own, module] of [
      [flags, 'src/agent/agent.ts'],
      [[], 'src/cli/program.ts'],
    ] as const) {
      const url = pathToFileURL(join(there, 'app', module)).href;
      const args = [...own, '--input-type=module', '--eval', `await import(${JSON.stringify(url)})`];
      const env = { ...compiledEnvironment(join(there, 'compiled')), NODE_DEBUG_NATIVE: 'COMPILE_CACHE' };
      const { stderr } = await run(process.execPath, args, { env });
      const taken = stderr.split('\n').filter((line) => line.includes('was accepted')).length;
      expect(taken, `${module}: ${stderr.slice(-2000)}`).toBeGreaterThan(100);
      expect(stderr).not.toContain('was rejected');
    }
  } finally {
    await rm(root, { recursive: true, force: true });
  }
});
