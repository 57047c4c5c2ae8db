import assert from 'node:assert/strict';
import { after, before, it } from 'node:test';
import { agentRequest } from '#lab/agents.ts';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import { frontmanSchema } from '#src/agent/api.ts';
import { migrationSchema } from '#src/coordination/schema.ts';
import { containers, ended, migrateToEnd } from './support/moves.ts';

/** What the prototype of the paper got wrong and nothing else here would notice (docs/prototype-defects.md). */
const NAME = 'counter';
const PORT = 6379;
const LIMIT = { timeout: 120_000 };

const lab = Lab.open();
let alpha: Host;
let beta: Host;

before(async () => {
  await lab.up();
  alpha = lab.host('alpha');
  beta = lab.host('beta');
});

after(async () => {
  for (const host of lab.hosts) await host.exec('podman', ['rm', '--force', '--time', '0', '--ignore', NAME]);
});

async function startCounter(): Promise<void> {
  const image = await alpha.importImage('redis');
  const program = ['redis-server', '--protected-mode', 'no', '--save', ''];
  await alpha.exec('podman', ['run', '--detach', '--name', NAME, image, ...program]);
}

/** One more, as a client at the Frontman's address counts. */
async function count(): Promise<number> {
  const { stdout } = await beta.exec('redis-cli', ['-h', alpha.address, '-p', String(PORT), 'incr', 'count']);
  return Number(stdout.trim());
}

it(
  'a service with a Frontman whose copy shall be kept moves once, is kept stopped, and is free again',
  LIMIT,
  async () => {
    await startCounter();
    const wanted = { service: NAME, listen: { address: alpha.address, port: PORT }, port: PORT };
    const frontman = frontmanSchema.parse(await agentRequest(alpha, 'POST', '/v1/frontmen', wanted));
    assert.equal(await count(), 1);

    const moved = await migrateToEnd(alpha, NAME, 'beta', { keepSourceStopped: true });
    assert.equal(moved.state, 'done', JSON.stringify(moved.error));
    assert.equal(await count(), 2, 'its clients find it at the same address, with its state');
    const frontmen = frontmanSchema.array().parse(await agentRequest(alpha, 'GET', '/v1/frontmen'));
    assert.deepEqual(
      frontmen.map(({ id, target, status }) => ({ id, target, status })),
      [{ id: frontman.id, target: 'beta', status: 'open' }],
    );
    assert.deepEqual(await statesOf(alpha), ['exited'], 'the copy is kept, and does not run');
    assert.deepEqual(await statesOf(beta), ['running']);

    // Nothing holds it any more: it may be removed, and the service comes back to where its name is free again.
    const refused = await migrateToEnd(beta, NAME, 'alpha');
    assert.equal(refused.error?.code, 'UMS_E_NAME_TAKEN');
    assert.equal(await count(), 3, 'a refusal changes nothing');
    await alpha.exec('podman', ['rm', NAME]);
    const back = await migrateToEnd(beta, NAME, 'alpha');
    assert.equal(back.state, 'done', JSON.stringify(back.error));
    assert.equal(await count(), 4);
    assert.deepEqual(await statesOf(beta), []);
    await agentRequest(alpha, 'DELETE', `/v1/frontmen/${frontman.id}`);
  },
);

it('of many who move one service at the same moment, one does, and the others are told', LIMIT, async () => {
  const asked = await Promise.allSettled(
    Array.from({ length: 6 }, () => agentRequest(alpha, 'POST', '/v1/migrations', { service: NAME, to: 'beta' })),
  );
  const taken = asked.flatMap((one) => (one.status === 'fulfilled' ? [migrationSchema.parse(one.value)] : []));
  const refused = asked.flatMap((one) => (one.status === 'rejected' ? [String(one.reason)] : []));
  assert.equal(taken.length, 1, refused.join('\n'));
  for (const reason of refused) assert.match(reason, /UMS_E_SERVICE_BUSY/);
  const [one] = taken;
  assert.ok(one !== undefined);
  assert.equal((await ended(alpha, one.id)).state, 'done');
  assert.deepEqual(await statesOf(alpha), []);
  assert.deepEqual(await statesOf(beta), ['running']);
});

async function statesOf(host: Host): Promise<string[]> {
  return (await containers(host, NAME)).map(({ State }) => State);
}
