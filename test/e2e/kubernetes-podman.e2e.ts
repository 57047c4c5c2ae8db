import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { OutsideClient } from '#bench/redis/client.ts';
import { agentRequest } from '#lab/agents.ts';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import {
  apply,
  deploymentOf,
  isOwnersAgain,
  kubectl,
  onePodOf,
  podsOf,
  shown,
  theDeployment,
} from './support/deployments.ts';
import { containers, migrateToEnd, until } from './support/moves.ts';

/**
 * A Redis in a Deployment goes to a host with Podman and comes back, and a client in the cluster writes to it all the while, by the
 * address of a Service. The Service leads to a Frontman, and that one to wherever the Redis is.
 */
const TEST_LIMIT_MS = 300_000;
const SEEN_LIMIT_MS = 60_000;
const NAME = 'cache';
const PORT = 6379;
const WRITES_A_SECOND = 100;
/** Before, between and after the moves: some seconds of calm. */
const CALM_WRITES = 150;
const REDIS = ['redis-server', '--bind', '0.0.0.0', '--protected-mode', 'no', '--save', ''];

const lab = Lab.open();
let alpha: Host;
let beta: Host;
const clients: OutsideClient[] = [];

before(async () => {
  await lab.up({ engines: ['kubernetes'] });
  alpha = lab.host('alpha');
  beta = lab.host('beta');
});

after(() => Promise.all(clients.map((client) => client.close())));

/** A Service without a selector, whose one endpoint is the Frontman at the node's address. */
async function makeService(address: string): Promise<string> {
  const ports = [{ port: PORT }];
  const metadata = { name: NAME };
  await apply(alpha, { apiVersion: 'v1', kind: 'Service', metadata, spec: { ports } });
  await apply(alpha, {
    apiVersion: 'v1',
    kind: 'Endpoints',
    metadata,
    subsets: [{ addresses: [{ ip: address }], ports }],
  });
  return await kubectl(alpha, 'get', 'service', NAME, '-o', 'jsonpath={.spec.clusterIP}');
}

function client(address: string): OutsideClient {
  const made = OutsideClient.on(alpha, address, PORT);
  clients.push(made);
  return made;
}

async function untilWritten(writer: OutsideClient, more: number): Promise<void> {
  const wanted = (await writer.acknowledged()) + more;
  await until('the client writes', SEEN_LIMIT_MS, async () =>
    (await writer.acknowledged()) >= wanted ? true : undefined,
  );
}

void describe('a Redis in a Deployment', { timeout: TEST_LIMIT_MS }, () => {
  void it('moves to Podman and back, and no acknowledged write is lost', async (t) => {
    await apply(alpha, deploymentOf(NAME, REDIS, 'redis', { automountServiceAccountToken: false }));
    const pod = await onePodOf(alpha, NAME);
    await agentRequest(alpha, 'POST', '/v1/frontmen', {
      service: pod,
      listen: { address: alpha.address, port: PORT },
      port: PORT,
      mode: 'tcp',
    });
    const address = await makeService(alpha.address);
    const [reader, writer] = [client(address), client(address)];
    const first = await until('it answers by its Service', SEEN_LIMIT_MS, () => reader.identity());
    await writer.startWriting(WRITES_A_SECOND);
    await untilWritten(writer, CALM_WRITES);

    const began = Date.now();
    const there = await migrateToEnd(alpha, pod, 'beta', { technique: 'hybrid', engine: 'podman' });
    assert.equal(there.state, 'done', JSON.stringify(there.error));
    await untilWritten(writer, CALM_WRITES);
    const gap = await writer.gap(began, Date.now());
    t.diagnostic(`to Podman: ${there.downtime_ms} ms of downtime, the client waited ${Math.round(gap.gap_ms)} ms`);
    assert.equal((await reader.identity()).run_id, first.run_id, 'the same process answers');
    assert.deepEqual(
      (await containers(beta, pod)).map(({ State }) => State),
      ['running'],
    );
    assert.match(await shown(alpha, NAME), /^cache\s+0\/1\s+0\s+0\s/);
    assert.match((await theDeployment(alpha, NAME)).metadata.annotations['ums.away'] ?? '', /^is at beta since 20/);
    assert.deepEqual(await podsOf(alpha, NAME), []);

    const home = Date.now();
    const back = await migrateToEnd(beta, pod, 'alpha', { technique: 'hybrid', engine: 'kubernetes' });
    assert.equal(back.state, 'done', JSON.stringify(back.error));
    await untilWritten(writer, CALM_WRITES);
    const wait = await writer.gap(home, Date.now());
    t.diagnostic(`back: ${back.downtime_ms} ms of downtime, the client waited ${Math.round(wait.gap_ms)} ms`);
    await isOwnersAgain(alpha, NAME, pod);
    assert.deepEqual(await containers(beta, pod), [], 'nothing is left in Podman');
    assert.match(
      await kubectl(alpha, 'logs', pod),
      /Ready to accept connections/,
      'its log came along, there and back',
    );

    await writer.stopWriting();
    const { acknowledged, lost } = await writer.lost();
    t.diagnostic(`${acknowledged} writes were acknowledged, ${lost} are lost`);
    assert.equal(lost, 0);
    const last = await reader.identity();
    assert.equal(last.run_id, first.run_id);
    assert.ok(last.uptime_s >= first.uptime_s);
  });

  void it('is refused, and left alone, where Podman has no words for it', async () => {
    const name = 'tokened';
    await apply(alpha, deploymentOf(name, ['busybox', 'sleep', '1000']));
    const pod = await onePodOf(alpha, name);
    const reasons = { docker: /ums cannot make one of docker of it/, podman: /token of a service account/ } as const;
    for (const engine of ['docker', 'podman'] as const) {
      const result = await migrateToEnd(alpha, pod, 'beta', { engine });
      assert.equal(result.state, 'aborted');
      assert.equal(result.error?.code, 'UMS_E_SPECIFICATION');
      assert.match(result.error?.message ?? '', reasons[engine]);
    }
    assert.match(await shown(alpha, name), /^tokened\s+1\/1\s/);
    assert.deepEqual(await containers(beta, pod), []);
  });
});
