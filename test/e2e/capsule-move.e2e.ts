import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { z } from 'zod';
import { agentRequest } from '#lab/agents.ts';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import { agentAnswers, type Capsule, inService, removeCapsules, runCapsule } from './support/capsules.ts';
import {
  clearBreakpoints,
  ended,
  migrate,
  migrateToEnd,
  reachedBreakpoint,
  setBreakpoint,
  until,
} from './support/moves.ts';
import { greetingFrom, lines, statusOf, verified, wentOn, WORKLOAD } from './support/workload.ts';

/** A capsule's service moves to another host and another engine by one command to the hosts' own agents. */
const TEST_LIMIT_MS = 400_000;
const START_LIMIT_MS = 90_000;
const ROOTFS = '/srv/capsule-move-rootfs';
const NAME = 'moved';
const FRONT = 7795;

const lab = Lab.open();
let alpha: Host;
let beta: Host;
let a: Capsule;
let b: Capsule;

before(async () => {
  await lab.up({ engines: ['docker'], agents: false });
  await lab.restartAgents({ faultInjection: true });
  alpha = lab.host('alpha');
  beta = lab.host('beta');
  a = { host: alpha, engine: 'podman', name: NAME, peerPort: 7450 };
  b = { host: beta, engine: 'docker', name: NAME, peerPort: 7450 };
});

after(async () => {
  await removeCapsules(a, b);
  await lab.restartAgents();
});

const names = (host: Host, engine: string): Promise<string[]> =>
  lines(host, engine, ['ps', '--all', '--format', '{{.Names}}']);

const toDocker = { engine: 'docker', technique: 'hybrid' };

async function works(capsule: Capsule): Promise<void> {
  await until(
    'it works',
    START_LIMIT_MS,
    async () => (await verified(capsule.host, inService(capsule))).ok || undefined,
  );
}

void describe('a capsule’s service, moved by the agents of its hosts', { timeout: TEST_LIMIT_MS }, () => {
  before(async () => {
    await removeCapsules(a, b);
    const script = `rm -rf ${ROOTFS}; cp -a /opt/bundles/${WORKLOAD}/rootfs ${ROOTFS}; mkdir ${ROOTFS}/data`;
    await alpha.exec('sh', ['-ec', script]);
    const service = ['--rootfs', ROOTFS, WORKLOAD, 'run', '--bind', '0.0.0.0', '--mib', '4'];
    await runCapsule(a, ['--volume', `${ROOTFS}:${ROOTFS}:ro`], service);
    await agentAnswers(a);
    await works(a);
  });

  void it('is left alone where its way is closed, and told what would open it', async () => {
    await beta.exec('docker', ['image', 'rm', 'ums-capsule:latest'], { okExitCodes: [0, 1] });
    const noImage = await migrateToEnd(alpha, NAME, 'beta', toDocker);
    assert.equal(noImage.error?.code, 'UMS_E_APPROACH');
    assert.match(noImage.error?.mend ?? '', /ums image build capsule/);
    const asItIs = await migrateToEnd(alpha, NAME, 'beta', { engine: 'docker', approach: 'orchestrator-level' });
    assert.equal(asItIs.error?.code, 'UMS_E_SPECIFICATION');
    const within = await migrateToEnd(alpha, NAME, 'beta', { approach: 'service-level' });
    assert.equal(within.error?.code, 'UMS_E_APPROACH');
    assert.deepEqual(await names(beta, 'docker'), []);
    await works(a);
  });

  void it('stays where it is when its move is cancelled, and the capsule that was made for it goes', async () => {
    await beta.importImage('capsule', 'docker');
    const place = { role: 'source', state: 'nested', point: 'before' } as const;
    await setBreakpoint(alpha, place);
    const before = await statusOf(alpha, inService(a));
    const { id } = await migrate(alpha, NAME, 'beta', toDocker);
    assert.ok(await reachedBreakpoint(alpha, alpha, id, 'nested', 'before', START_LIMIT_MS));
    assert.deepEqual(await names(beta, 'docker'), [NAME]);
    await agentRequest(alpha, 'POST', `/v1/migrations/${id}/cancel`);
    await clearBreakpoints(alpha);
    const now = await ended(alpha, id, START_LIMIT_MS);
    assert.equal(now.state, 'aborted', JSON.stringify(now));
    assert.equal(now.error?.code, 'UMS_E_CANCELLED');
    assert.deepEqual(await names(beta, 'docker'), []);
    wentOn(before, (await verified(alpha, inService(a))).status);
  });

  void it('moves from Podman to Docker, though the source’s agent is killed at both ends of it, and a Frontman follows', async (t) => {
    await agentRequest(alpha, 'POST', '/v1/frontmen', {
      service: NAME,
      listen: { address: '0.0.0.0', port: FRONT },
      port: 7777,
      mode: 'tcp',
    });
    const before = await statusOf(alpha, inService(a));
    assert.equal(await greetingFrom(lab, alpha.address, FRONT), `${WORKLOAD} ${before.boot_id}`);
    const { id } = await migrate(alpha, NAME, 'beta', toDocker);
    await killedAt(id, 'before');
    await killedAt(id, 'after');
    const now = await ended(alpha, id, 120_000);
    assert.equal(now.state, 'done', JSON.stringify(now.error));
    assert.equal(now.approach, 'container-level');
    t.diagnostic(`${now.technique}: ${now.downtime_ms ?? 0} ms of downtime`);
    wentOn(before, (await verified(beta, inService(b))).status);
    assert.deepEqual(await names(alpha, 'podman'), []);
    assert.deepEqual(await names(beta, 'docker'), [NAME]);
    assert.equal(await greetingFrom(lab, alpha.address, FRONT), `${WORKLOAD} ${before.boot_id}`);
    const [frontman] = z.array(z.object({ id: z.string() })).parse(await agentRequest(alpha, 'GET', '/v1/frontmen'));
    await agentRequest(alpha, 'DELETE', `/v1/frontmen/${frontman?.id ?? ''}`);
  });
});

/** A breakpoint does not outlive the agent, so the next one is set when it is back; this end of the step may be over by then. */
async function killedAt(id: string, point: 'before' | 'after'): Promise<void> {
  await setBreakpoint(alpha, { role: 'source', state: 'nested', point });
  await reachedBreakpoint(alpha, alpha, id, 'nested', point, START_LIMIT_MS);
  await lab.killAgent('alpha');
  await lab.startAgent('alpha', { faultInjection: true });
}
