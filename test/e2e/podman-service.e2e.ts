import assert from 'node:assert/strict';
import { after, before, it } from 'node:test';
import { z } from 'zod';
import { agentRequest } from '#lab/agents.ts';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import { until } from './support/moves.ts';

/** Podman's own service, which an agent starts to ask it: one, and another when it has ended. */
const NAME = 'asked-about';
const PROGRAM = 'podman system service';

const lab = Lab.open();
let alpha: Host;

before(async () => {
  await lab.up();
  alpha = lab.host('alpha');
  await remove();
  const image = await alpha.importImage('memhog');
  await alpha.exec('podman', ['run', '--detach', '--name', NAME, image, 'memhog', '4', '100', '/tmp/ticks']);
});
after(remove);

async function remove(): Promise<void> {
  await alpha.exec('podman', ['rm', '--force', '--time', '0', '--ignore', NAME]);
}

async function isKnown(): Promise<boolean> {
  const services = await agentRequest(alpha, 'GET', '/v1/services');
  return z
    .array(z.looseObject({ name: z.string() }))
    .parse(services)
    .some(({ name }) => name === NAME);
}

async function running(): Promise<string[]> {
  const { stdout } = await alpha.exec('pgrep', ['-f', PROGRAM], { okExitCodes: [0, 1] });
  return stdout.split('\n').filter((line) => line !== '');
}

void it('an agent starts one, and another when that one was ended', { timeout: 120_000 }, async () => {
  assert.ok((await Promise.all([isKnown(), isKnown(), isKnown()])).every(Boolean));
  const first = await running();
  assert.equal(first.length, 1, 'questions at the same time start one service');
  await alpha.exec('kill', ['-KILL', ...first]);
  // It may be asked before anybody noticed.
  assert.ok(await isKnown());
  const second = await until('another one', 10_000, async () => {
    const now = (await running()).filter((pid) => !first.includes(pid));
    return now.length === 1 ? now : undefined;
  });
  assert.ok(await isKnown());
  assert.deepEqual(await running(), second);
  const { stdout } = await alpha.exec('ls', ['/run/ums-podman']);
  assert.equal(stdout.trim().split('\n').length, 1, 'the socket of the first one is gone');
});
