import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import {
  apply,
  deploymentOf,
  isOwnersAgain as isWhole,
  isSetsAgain,
  kubectl,
  makeClaim,
  makeDeployment as makeOnAlpha,
  onePodOf,
  podsOf,
  removeClaim,
  shown as shownOf,
  statefulSetOf,
  storingSetOf,
  theDeployment,
  theStatefulSet,
} from './support/deployments.ts';
import { ended, migrate, migrateToEnd, reachedBreakpoint, setBreakpoint, until } from './support/moves.ts';
import { RemoteDriver } from './support/remote-driver.ts';
import { type InContainer, statusOf, verified, wentOn, WORKLOAD } from './support/workload.ts';

/** A pod of a Deployment or a StatefulSet leaves its cluster and comes back: what its owner does meanwhile, and what kubectl shows of it. */
const TEST_LIMIT_MS = 400_000;
const SEEN_LIMIT_MS = 60_000;
const EXEC_LIMIT_MS = 30_000;
/** A kubelet that is busy looks at a pod's volumes every minute or so before it lets the pod go. */
const REPLACED_LIMIT_MS = 180_000;
/** Longer than a controller takes to make a pod: it took less than a second wherever it was not held. */
const QUIET_MS = 4000;

const lab = Lab.open();
let alpha: Host;
let beta: Host;

before(async () => {
  await lab.up({ engines: ['kubernetes'] });
  alpha = lab.host('alpha');
  beta = lab.host('beta');
});

const inPod =
  (name: string): InContainer =>
  (host, args) =>
    host.exec('kubectl', ['exec', name, '--', ...args], { timeout_ms: EXEC_LIMIT_MS, okExitCodes: [0, 1] });

const makeDeployment = (name: string, command: string[], image?: string) => makeOnAlpha(alpha, name, command, image);
async function makeNewDeployment(name: string, command: string[]): Promise<string> {
  await apply(alpha, deploymentOf(name, command));
  return await onePodOf(alpha, name);
}

const shown = (name: string) => shownOf(alpha, name);
const isOwnersAgain = (name: string, pod: string) => isWhole(alpha, name, pod);

void describe('a pod of a Deployment', { timeout: TEST_LIMIT_MS }, () => {
  void it('moves to another cluster and back, and its owner neither makes another one nor loses it', async (t) => {
    const name = 'sink';
    const run = `mkdir -p /data && exec ${WORKLOAD} run --bind 0.0.0.0 --mib 4`;
    const pod = await makeDeployment(name, ['sh', '-c', run], WORKLOAD);
    const inside = inPod(pod);
    await until('it works', SEEN_LIMIT_MS, async () => (await verified(alpha, inside)).ok || undefined);
    const first = await statusOf(alpha, inside);
    const there = await migrateToEnd(alpha, pod, 'beta', { technique: 'hybrid' });
    assert.equal(there.state, 'done', JSON.stringify(there.error));
    wentOn(first, (await verified(beta, inside)).status);
    t.diagnostic(`to beta: ${there.downtime_ms} ms of downtime, ${there.total_ms} ms in all`);

    // What kubectl shows: one is wanted, none is here, and where it is.
    assert.match(await shown(name), /^sink\s+0\/1\s+0\s+0\s/);
    assert.match((await theDeployment(alpha, name)).metadata.annotations['ums.away'] ?? '', /^is at beta since 20/);
    assert.deepEqual(await podsOf(alpha, name), []);
    // What people and controllers do to it meanwhile makes no second one.
    await kubectl(alpha, 'scale', 'deployment', name, '--replicas=3');
    await kubectl(alpha, 'delete', 'pods', '-l', `app=${name}`);
    await kubectl(alpha, 'scale', 'deployment', name, '--replicas=0');
    await sleep(QUIET_MS);
    assert.deepEqual(await podsOf(alpha, name), [], 'nobody has made another one');
    const [guest] = await podsOf(beta, name);
    assert.deepEqual(guest?.metadata.ownerReferences, [], 'there it is a pod of its own');

    // It does not come back to an owner that would end it at once.
    const refused = await migrateToEnd(beta, pod, 'alpha', { technique: 'hybrid' });
    assert.equal(refused.state, 'aborted');
    assert.match(JSON.stringify(refused.error), /scaled to 0 while its service was away/);
    await kubectl(alpha, 'scale', 'deployment', name, '--replicas=1');
    const back = await migrateToEnd(beta, pod, 'alpha', { technique: 'cold' });
    assert.equal(back.state, 'done', JSON.stringify(back.error));
    wentOn(first, (await verified(alpha, inside)).status);
    t.diagnostic(`back to alpha: ${back.downtime_ms} ms of downtime, ${back.total_ms} ms in all`);
    await isOwnersAgain(name, pod);
    assert.deepEqual(await podsOf(beta, name), []);

    // From now on its owner does with it what it does with any pod.
    await kubectl(alpha, 'delete', 'pod', pod);
    await until('its owner replaces it', SEEN_LIMIT_MS, async () =>
      (await podsOf(alpha, name)).some(({ metadata }) => metadata.name !== pod) ? true : undefined,
    );
    await kubectl(alpha, 'delete', 'deployment', name);
  });

  void it('is its owner’s as before when the move does not take place, and what was asked meanwhile is done then', async () => {
    const name = 'still';
    const driver = new RemoteDriver(alpha, 'kubernetes');
    const pod = await makeDeployment(name, ['busybox', 'sleep', '2000']);
    const { handle } = await driver.describe(pod);
    await driver.freeze(handle);
    assert.match(await shown(name), /^still\s+0\/1\s/);
    assert.match((await theDeployment(alpha, name)).metadata.annotations['ums.away'] ?? '', /^is being moved by ums/);
    await driver.thaw(handle);
    await driver.thaw(handle);
    await isOwnersAgain(name, pod);

    // A roll-out waits, and is done afterwards.
    const { handle: again } = await driver.describe(pod);
    await driver.freeze(again);
    await apply(alpha, deploymentOf(name, ['busybox', 'sleep', '3000']));
    await sleep(QUIET_MS);
    assert.deepEqual(
      (await podsOf(alpha, name)).map(({ metadata }) => metadata.name),
      [pod],
      'the roll-out waits',
    );
    await driver.thaw(again);
    const next = await until('the roll-out takes place', SEEN_LIMIT_MS, async () => {
      const names = (await podsOf(alpha, name)).map(({ metadata }) => metadata.name);
      return names.length === 1 && names[0] !== pod ? names[0] : undefined;
    });
    await isOwnersAgain(name, next);

    // Whoever deletes the frozen pod gets another one only when the service is the Deployment's again.
    const { handle: third } = await driver.describe(next);
    await driver.freeze(third);
    await kubectl(alpha, 'delete', 'pod', next, '--grace-period=0', '--force');
    await sleep(QUIET_MS);
    assert.deepEqual(await podsOf(alpha, name), []);
    await assert.rejects(driver.thaw(third));
    await until('its owner makes another one', SEEN_LIMIT_MS, async () =>
      /^still\s+1\/1\s/.test(await shown(name)) ? true : undefined,
    );
    await kubectl(alpha, 'delete', 'deployment', name);
  });

  void it('is its owner’s as before when the agent is killed while the owner is held', async () => {
    const name = 'killed';
    const pod = await makeNewDeployment(name, ['busybox', 'sleep', '1700']);
    await lab.restartAgents({ faultInjection: true });
    await setBreakpoint(alpha, { role: 'source', state: 'dumping', point: 'before', service: pod });
    const { id } = await migrate(alpha, pod, 'beta', { technique: 'hybrid' });
    assert.ok(await reachedBreakpoint(alpha, alpha, id, 'dumping', 'before'));
    assert.match(await shown(name), /^killed\s+0\/1\s/);
    await lab.killAgent('alpha');
    await sleep(QUIET_MS);
    assert.equal((await podsOf(alpha, name)).length, 1, 'without its agent, too, nobody makes another one');
    await lab.startAgent('alpha');
    assert.equal((await ended(alpha, id)).state, 'aborted');
    await isOwnersAgain(name, pod);
    await kubectl(alpha, 'delete', 'deployment', name);
  });

  void it('is refused, with the reason, where its owner has more than this one pod', async () => {
    const name = 'many';
    const pod = await makeNewDeployment(name, ['busybox', 'sleep', '1500']);
    await kubectl(alpha, 'scale', 'deployment', name, '--replicas=2');
    await assert.rejects(migrateToEnd(alpha, pod, 'beta'), /has 2 replicas/);
    assert.equal((await theDeployment(alpha, name)).spec.paused, false);
    await kubectl(alpha, 'delete', 'deployment', name);
  });
});

async function makeSet(set: ReturnType<typeof statefulSetOf>): Promise<string> {
  const { name } = set.metadata;
  await apply(alpha, set);
  await kubectl(alpha, 'rollout', 'status', 'statefulset', name, '--timeout=60s');
  return `${name}-0`;
}

async function filesIn(host: Host, path: string): Promise<string[]> {
  return (await host.exec('ls', ['-A', path])).stdout.split('\n').filter((line) => line !== '');
}

const shownSet = (name: string) => kubectl(alpha, 'get', 'statefulset', name, '--no-headers');

async function uidOf(pod: string): Promise<string> {
  return await kubectl(alpha, 'get', 'pod', pod, '-o', 'jsonpath={.metadata.uid}');
}

void describe('a pod of a StatefulSet', { timeout: TEST_LIMIT_MS }, () => {
  void it('moves to another cluster and back, and its owner neither makes another one nor loses it', async (t) => {
    const name = 'store';
    const run = ['sh', '-c', `mkdir -p /data && exec ${WORKLOAD} run --bind 0.0.0.0 --mib 4`];
    const files = await makeClaim(alpha, name);
    const pod = await makeSet(storingSetOf(name, run, WORKLOAD));
    const inside = inPod(pod);
    await until('it works', SEEN_LIMIT_MS, async () => (await verified(alpha, inside)).ok || undefined);
    const first = await statusOf(alpha, inside);
    const unclaimed = await migrateToEnd(alpha, pod, 'beta', { technique: 'hybrid' });
    assert.match(JSON.stringify(unclaimed.error), /There is no claim data-store-0 here/);
    await makeClaim(beta, name);
    await beta.exec('sh', ['-ec', 'mkdir -p "$1"; echo mine >"$1/file"', 'sh', files]);
    const taken = await migrateToEnd(alpha, pod, 'beta', { technique: 'hybrid' });
    assert.match(JSON.stringify(taken.error), /claims as its volume data is not empty here/);
    await isSetsAgain(alpha, name);
    assert.equal(beta.readFile(`${files}/file`), 'mine\n', 'it was not touched');
    await beta.exec('rm', [`${files}/file`]);
    const there = await migrateToEnd(alpha, pod, 'beta', { technique: 'hybrid' });
    assert.equal(there.state, 'done', JSON.stringify(there.error));
    wentOn(first, (await verified(beta, inside)).status);
    t.diagnostic(`to beta: ${there.downtime_ms} ms of downtime, ${there.total_ms} ms in all`);
    assert.deepEqual(await filesIn(alpha, files), [], 'what it claimed here is empty');
    assert.ok((await filesIn(beta, files)).length > 0);

    assert.match(await shownSet(name), /^store\s+0\/1\s/);
    assert.match((await theStatefulSet(alpha, name)).metadata.annotations['ums.away'] ?? '', /^is at beta since 20/);
    // What people and controllers do to it meanwhile makes no second one.
    await kubectl(alpha, 'scale', 'statefulset', name, '--replicas=3');
    await kubectl(alpha, 'delete', 'pods', '-l', `app=${name}`);
    await kubectl(alpha, 'delete', 'statefulset', name, '--wait=false');
    await kubectl(alpha, 'scale', 'statefulset', name, '--replicas=0');
    await sleep(QUIET_MS);
    assert.deepEqual(await podsOf(alpha, name), [], 'nobody has made another one');

    // It does not come back to an owner that would end it at once.
    const scaled = await migrateToEnd(beta, pod, 'alpha', { technique: 'hybrid' });
    assert.match(JSON.stringify(scaled.error), /scaled to 0 while its service was away/);
    await apply(alpha, storingSetOf(name, ['busybox', 'sleep', '4000']));
    const updated = await migrateToEnd(beta, pod, 'alpha', { technique: 'hybrid' });
    assert.match(JSON.stringify(updated.error), /given another template while its service was away/);
    await apply(alpha, storingSetOf(name, run, WORKLOAD));
    const back = await migrateToEnd(beta, pod, 'alpha', { technique: 'cold' });
    assert.equal(back.state, 'done', JSON.stringify(back.error));
    wentOn(first, (await verified(alpha, inside)).status);
    t.diagnostic(`back to alpha: ${back.downtime_ms} ms of downtime, ${back.total_ms} ms in all`);
    const uid = await isSetsAgain(alpha, name);
    await sleep(QUIET_MS);
    assert.equal(await isSetsAgain(alpha, name), uid, 'it is the one that came back, and stays it');
    assert.deepEqual(await podsOf(beta, name), []);
    assert.deepEqual(await filesIn(beta, files), []);

    // From now on its owner does with it what it does with any pod.
    await kubectl(alpha, 'delete', 'pod', pod, '--wait=false');
    await until('it is replaced', REPLACED_LIMIT_MS, async () =>
      (await podsOf(alpha, name)).some(({ metadata }) => metadata.uid !== uid) ? true : undefined,
    );
    await isSetsAgain(alpha, name);
    await kubectl(alpha, 'delete', 'statefulset', name);
    for (const host of [alpha, beta]) await removeClaim(host, name);
  });

  void it('is its owner’s as before when the move does not take place, and what was asked meanwhile is done then', async () => {
    const name = 'stays';
    const driver = new RemoteDriver(alpha, 'kubernetes');
    const pod = await makeSet(statefulSetOf(name, ['busybox', 'sleep', '2000']));
    const uid = await uidOf(pod);
    const { handle } = await driver.describe(pod);
    await driver.freeze(handle);
    assert.match((await theStatefulSet(alpha, name)).metadata.annotations['ums.away'] ?? '', /^is being moved by ums/);
    await driver.thaw(handle);
    await driver.thaw(handle);
    assert.equal(await isSetsAgain(alpha, name), uid);

    const { handle: again } = await driver.describe(pod);
    await driver.freeze(again);
    await apply(alpha, statefulSetOf(name, ['busybox', 'sleep', '3000']));
    await sleep(QUIET_MS);
    assert.equal(await uidOf(pod), uid, 'the roll-out waits');
    await driver.thaw(again);
    await until('the roll-out takes place', SEEN_LIMIT_MS, async () =>
      (await podsOf(alpha, name)).some(({ metadata }) => metadata.uid !== uid) ? true : undefined,
    );
    await isSetsAgain(alpha, name);
    await kubectl(alpha, 'delete', 'statefulset', name);
  });
});
