import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { agentRequest } from '#lab/agents.ts';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import { inContainerd, recordOf, remainsInContainerd, taskStatus } from './support/containerd.ts';
import { migrateToEnd, until } from './support/moves.ts';
import { greetingFrom, lines, moveByCommand, statusOf, verified, wentOn, WORKLOAD } from './support/workload.ts';

/** containerd's own containers, by every technique, as `ctr` sees them before and after. */
const TEST_LIMIT_MS = 300_000;
const START_LIMIT_MS = 20_000;
/** The hosts' control groups have no controller for the share of the processor that `ctr` asks for. */
const SHARES = ['--cpu-shares', '0'];

const lab = Lab.open();
let alpha: Host;
let beta: Host;
let image: string;

before(async () => {
  await lab.up({ engines: ['containerd'] });
  alpha = lab.host('alpha');
  beta = lab.host('beta');
  image = await alpha.importImage(WORKLOAD, 'containerd');
});

async function removeAll(name: string): Promise<void> {
  const script = `ctr tasks rm --force ${name}; ctr containers rm ${name}; rm -f /var/log/${name}.log; true`;
  for (const host of [alpha, beta]) await host.exec('sh', ['-c', script]);
}

async function nothingRemains(host: Host, name: string): Promise<void> {
  await until(`nothing of ${name} is left on ${host.name}`, START_LIMIT_MS, async () => {
    const found = await remainsInContainerd(host, name);
    if (found.length > 0) throw new Error(found.join('\n'));
    return true;
  });
}

void describe('kitchensink in a container of containerd, on the network of its host', {
  timeout: TEST_LIMIT_MS,
}, () => {
  const NAME = 'sink-containerd';
  const PORT = 7777;
  const LOG = `/var/log/${NAME}.log`;
  /** A directory of its image: its files are in the container's own layer. */
  const DIRECTORY = ['--dir', '/srv'];
  const inside = inContainerd(NAME, ...DIRECTORY);
  before(() => removeAll(NAME));
  after(() => removeAll(NAME));

  void it('verifies itself after a move by each technique, and ctr sees it rightly on both sides', async (t) => {
    const options = ['--net-host', '--log-uri', `file://${LOG}`, '--env', 'COLOUR=blue', '--label', 'owner=nobody'];
    const program = [WORKLOAD, 'run', ...DIRECTORY, '--bind', '0.0.0.0', '--mib', '4'];
    await alpha.exec('ctr', ['run', '--detach', ...options, ...SHARES, image, NAME, ...program]);
    await until(`${NAME} works`, START_LIMIT_MS, async () => (await verified(alpha, inside)).ok || undefined);
    const record = await recordOf(alpha, NAME);
    const first = await statusOf(alpha, inside);
    let [from, to] = [alpha, beta];
    let log: string[] = [];
    for (const technique of ['cold', 'pre-copy', 'post-copy', 'hybrid'] as const) {
      const earlier = await statusOf(from, inside);
      const result = await migrateToEnd(from, NAME, to.name, { technique });
      assert.equal(result.state, 'done', JSON.stringify(result.error));
      wentOn(earlier, (await verified(to, inside)).status);
      assert.equal(await taskStatus(to, NAME), 'RUNNING');
      assert.deepEqual(await recordOf(to, NAME), record, `containerd's record of it after ${technique}`);
      const now = await lines(to, 'cat', [LOG]);
      assert.deepEqual(now.slice(0, log.length), log, 'the log of before is the beginning of the log of now');
      assert.ok(now[0]?.includes(first.boot_id), `the log begins with the start: ${now[0]}`);
      log = now;
      assert.equal(await greetingFrom(lab, to.address, PORT), `kitchensink ${first.boot_id}`);
      assert.equal(await greetingFrom(lab, from.address, PORT), undefined, 'the port is free where it was');
      await nothingRemains(from, NAME);
      t.diagnostic(`${technique}: ${result.downtime_ms} ms of downtime, ${result.total_ms} ms in all`);
      [from, to] = [to, from];
    }
    await moveByCommand(lab, from, NAME, to);
    wentOn(first, (await verified(to, inside)).status);
    await servesItsEngine(to, first.boot_id);
  });

  /** `ctr`'s pause, resume, kill, start and rm work on the moved container as on any other. */
  async function servesItsEngine(host: Host, bootId: string): Promise<void> {
    await host.exec('ctr', ['tasks', 'pause', NAME]);
    assert.equal(await taskStatus(host, NAME), 'PAUSED');
    await host.exec('ctr', ['tasks', 'resume', NAME]);
    assert.ok((await verified(host, inside)).ok);
    await host.exec('ctr', ['tasks', 'kill', NAME]);
    await until('it has ended', START_LIMIT_MS, async () => (await taskStatus(host, NAME)) === 'STOPPED' || undefined);
    await host.exec('ctr', ['tasks', 'rm', NAME]);
    // Nothing of its next task has to do with ums: not even the directory of its restore is there any more.
    await host.exec('ctr', ['tasks', 'start', '--detach', '--log-uri', `file://${LOG}`, NAME]);
    await until('it works again', START_LIMIT_MS, async () => (await verified(host, inside)).ok || undefined).catch(
      async (error: unknown) => {
        const told = await lines(host, 'tail', ['-n', '20', LOG]);
        throw new Error(`what it printed last:\n${told.join('\n')}`, { cause: error });
      },
    );
    const again = await statusOf(host, inside);
    assert.equal(again.generation, 2, 'its files are those it had');
    assert.notEqual(again.boot_id, bootId);
    await host.exec('ctr', ['tasks', 'rm', '--force', NAME]);
    await host.exec('ctr', ['containers', 'rm', NAME]);
    await host.exec('rm', [LOG]);
  }
});

void describe('kitchensink in a container of containerd, alone with its loopback', { timeout: TEST_LIMIT_MS }, () => {
  const NAME = 'lone-containerd';
  const inside = inContainerd(NAME);
  before(() => removeAll(NAME));
  after(() => removeAll(NAME));

  void it('moves with its pipes, and a directory of the host that is taken along', async () => {
    const path = `/srv/${NAME}`;
    for (const host of [alpha, beta]) await host.exec('rm', ['-rf', path]);
    await alpha.exec('mkdir', [path]);
    const options = ['--mount', `type=bind,src=${path},dst=/data,options=rbind:rw`, ...SHARES];
    await alpha.exec('ctr', ['run', '--detach', ...options, image, NAME, WORKLOAD, 'run', '--mib', '4']);
    await until(`${NAME} works`, START_LIMIT_MS, async () => (await verified(alpha, inside)).ok || undefined);
    const earlier = await statusOf(alpha, inside);
    const result = await migrateToEnd(alpha, NAME, beta.name, { technique: 'post-copy', bindMounts: 'copy' });
    assert.equal(result.state, 'done', JSON.stringify(result.error));
    wentOn(earlier, (await verified(beta, inside)).status);
    await nothingRemains(alpha, NAME);
    await removeAll(NAME);
    // The agent drops its link to a runtime when it sees that the task is gone.
    await agentRequest(beta, 'GET', '/v1/services');
    await nothingRemains(beta, NAME);
  });

  void it('is refused with a reason where somebody else has furnished its network', async () => {
    await alpha.exec('ctr', ['run', '--detach', '--null-io', ...SHARES, image, NAME, 'sleep', '1000']);
    const task = (await lines(alpha, 'ctr', ['tasks', 'ls'])).find((line) => line.startsWith(NAME)) ?? '';
    const pid = task.trim().split(/\s+/)[1] ?? '';
    await alpha.exec('nsenter', [
      `--net=/proc/${pid}/ns/net`,
      'ip',
      'link',
      'add',
      'eth0',
      'type',
      'veth',
      'peer',
      'eth1',
    ]);
    await assert.rejects(migrateToEnd(alpha, NAME, beta.name), /furnished by somebody else \(eth\d, eth\d\)/);
    await removeAll(NAME);
  });
});
