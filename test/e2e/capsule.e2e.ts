import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import {
  agentAnswers,
  type Capsule,
  exited,
  inCapsule,
  inService,
  logOf,
  moveService,
  pairCapsules,
  removeCapsules,
  runCapsule,
  stateOf,
} from './support/capsules.ts';
import { until } from './support/moves.ts';
import { greetingFrom, statusOf, verified, wentOn, WORKLOAD } from './support/workload.ts';

/** The container-level approach: a service in a capsule, under engines that know nothing of it. */
const TEST_LIMIT_MS = 300_000;
const START_LIMIT_MS = 90_000;
const ROOTFS = '/srv/capsule-rootfs';
const BUSYBOX = ['--rootfs', '/srv/images/busybox.tar', '--no-agent'];

const lab = Lab.open();
let alpha: Host;
let beta: Host;

before(async () => {
  await lab.up({ engines: ['docker'] });
  alpha = lab.host('alpha');
  beta = lab.host('beta');
});

for (const engine of ['podman', 'docker'] as const) {
  void describe(`a capsule in ${engine} looks like its service`, { timeout: TEST_LIMIT_MS }, () => {
    let capsule: Capsule;
    before(() => {
      capsule = { host: alpha, engine, name: `looks-${engine}`, peerPort: 7460 };
    });
    after(() => removeCapsules(capsule));

    const start = async (script: string, options: readonly string[] = [], args: readonly string[] = []) => {
      await removeCapsules(capsule);
      await runCapsule(capsule, options, [...BUSYBOX, ...args, 'sh', '-c', script]);
    };

    void it('its outputs are the capsule’s, whole and apart, and so is its exit status', async () => {
      const script = 'seq 1 2000; echo $COLOUR $0 >&2; exit 7';
      await start(script, ['--env', 'COLOUR=blue'], ['--env', 'SIZE=1']);
      assert.equal(await exited(capsule), 7);
      const { out, err } = await logOf(capsule);
      assert.deepEqual(
        out,
        Array.from({ length: 2000 }, (_, at) => String(at + 1)),
      );
      assert.deepEqual(err, ['blue sh']);
    });

    void it('it gets signals, its own stop signal for SIGTERM, and its end is told as a shell does', async () => {
      await start(
        'trap "echo usr1" USR1; trap "echo stopped; exit 3" INT; echo ready; while :; do sleep 0.05; done',
        [],
        ['--stop-signal', 'SIGINT'],
      );
      const says = (line: string) =>
        until(`it says ${line}`, START_LIMIT_MS, async () => (await logOf(capsule)).out.includes(line) || undefined);
      await says('ready');
      await alpha.exec(engine, ['kill', '--signal', 'USR1', capsule.name]);
      await says('usr1');
      await alpha.exec(engine, ['stop', capsule.name]);
      await says('stopped');
      assert.deepEqual(await stateOf(capsule), { status: 'exited', exitCode: 3 });
    });

    void it('something can be run in it, its health can be asked for, and a restart begins with its files', async () => {
      const test = 'echo fine; test ! -e /ill';
      await start('echo once >>/log; echo ready; exec sleep 1000', [], ['--hostname', 'inside']);
      await until('it runs', START_LIMIT_MS, async () => (await logOf(capsule)).out.includes('ready') || undefined);
      const inside = inService(capsule);
      const seen = await inside(alpha, ['sh', '-c', 'hostname; id -u; cat /proc/1/comm; exit 5']);
      assert.deepEqual(
        { out: seen.stdout, status: seen.exitCode },
        { out: 'inside\n0\nsleep\n', status: 5 },
        seen.stderr,
      );
      assert.equal((await inCapsule(capsule, ['ums', 'capsule', 'health'])).exitCode, 0);
      assert.equal((await inside(alpha, ['sh', '-c', test])).exitCode, 0);
      await alpha.exec(engine, ['restart', '--time', '1', capsule.name]);
      await until('it began again', START_LIMIT_MS, async () =>
        (await inside(alpha, ['cat', '/log'])).stdout === 'once\nonce\n' ? true : undefined,
      );
    });
  });
}

void describe('a service moves from capsule to capsule', { timeout: TEST_LIMIT_MS }, () => {
  const PORT = 7791;
  let a: Capsule;
  let b: Capsule;
  before(async () => {
    a = { host: alpha, engine: 'podman', name: 'capsule-a', peerPort: 7450 };
    b = { host: beta, engine: 'docker', name: 'capsule-b', peerPort: 7450 };
    await removeCapsules(a, b);
  });
  after(() => removeCapsules(a, b));

  void it('between Podman and Docker, by each technique, and the capsules show where it is', async (t) => {
    const published = ['--publish', `${PORT}:7777`];
    await alpha.exec('sh', [
      '-ec',
      `rm -rf ${ROOTFS}; cp -a /opt/bundles/${WORKLOAD}/rootfs ${ROOTFS}; mkdir ${ROOTFS}/data`,
    ]);
    const mounted = ['--volume', `${ROOTFS}:${ROOTFS}:ro`];
    await runCapsule(
      a,
      [...published, ...mounted],
      ['--rootfs', ROOTFS, WORKLOAD, 'run', '--bind', '0.0.0.0', '--mib', '4'],
    );
    await runCapsule(b, published, []);
    await Promise.all([agentAnswers(a), agentAnswers(b)]);
    await pairCapsules(a, b);
    await until('it works', START_LIMIT_MS, async () => (await verified(alpha, inService(a))).ok || undefined);
    const first = await statusOf(alpha, inService(a));
    let [from, to] = [a, b];
    for (const technique of ['cold', 'pre-copy', 'post-copy', 'hybrid'] as const) {
      const before = await statusOf(from.host, inService(from));
      const result = await moveService(from, to, technique);
      wentOn(before, (await verified(to.host, inService(to))).status);
      assert.equal(await greetingFrom(lab, to.host.address, PORT), `kitchensink ${first.boot_id}`);
      const empty = await inCapsule(from, ['ums', 'capsule', 'health']);
      assert.match(empty.stdout + empty.stderr, /empty/);
      assert.equal((await stateOf(from)).status, 'running', 'a capsule outlives its service’s departure');
      t.diagnostic(`${technique}: ${result.downtime_ms} ms of downtime, ${result.total_ms} ms in all`);
      [from, to] = [to, from];
    }
    // It is where it began. The other capsule starts anew, and does not begin the service again.
    await b.host.exec(b.engine, ['restart', '--time', '1', b.name]);
    await agentAnswers(b);
    const { stdout, stderr } = await inCapsule(b, ['ums', 'capsule', 'health']);
    assert.match(stdout + stderr, /empty/);
    await moveService(a, b, 'hybrid');
    await b.host.exec(b.engine, ['stop', '--time', '10', b.name]);
    assert.equal((await stateOf(b)).exitCode, 0, 'it ended at SIGTERM, by itself');
    assert.ok(
      (await logOf(b)).out.some((line) => line.includes('ends: asked to')),
      'its last words are in the last capsule’s log',
    );
  });
});
