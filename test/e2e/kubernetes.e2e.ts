import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import type { ServiceSummary } from '#src/drivers/contract.ts';
import { z } from 'zod';
import { kubectl, untilReady } from './support/deployments.ts';
import { CIRCUMSTANCES, removePod, runPod } from './support/kubernetes-refusals.ts';
import { migrateToEnd, until } from './support/moves.ts';
import { nothingRemains } from './support/pods.ts';
import { attempt, failedWith } from './support/refusals.ts';
import { RemoteDriver } from './support/remote-driver.ts';
import { type InContainer, moveByCommand, statusOf, verified, wentOn, WORKLOAD } from './support/workload.ts';

/** Pods between two clusters, as each of the clusters sees them before and after. */
const TEST_LIMIT_MS = 400_000;
const START_LIMIT_MS = 60_000;
const EXEC_LIMIT_MS = 30_000;
const NAME = 'sink';

const lab = Lab.open();
let alpha: Host;
let beta: Host;

before(async () => {
  await lab.up({ engines: ['kubernetes'] });
  alpha = lab.host('alpha');
  beta = lab.host('beta');
});

const inside: InContainer = (host, args) =>
  host.exec('kubectl', ['exec', NAME, '--', ...args], { timeout_ms: EXEC_LIMIT_MS, okExitCodes: [0, 1] });

const POD = {
  apiVersion: 'v1',
  kind: 'Pod',
  metadata: { name: NAME, labels: { app: NAME, purpose: 'test' }, annotations: { owner: 'nobody=in particular' } },
  spec: {
    restartPolicy: 'Always',
    volumes: [
      { name: 'data', emptyDir: {} },
      { name: 'settings', configMap: { name: 'settings' } },
    ],
    containers: [
      {
        name: 'main',
        image: `localhost/${WORKLOAD}:latest`,
        imagePullPolicy: 'IfNotPresent',
        command: [WORKLOAD, 'run', '--bind', '0.0.0.0', '--mib', '4'],
        env: [
          { name: 'COLOUR', value: 'blue' },
          { name: 'NODE', valueFrom: { fieldRef: { fieldPath: 'spec.nodeName' } } },
        ],
        ports: [{ containerPort: 7777 }],
        volumeMounts: [
          { name: 'data', mountPath: '/data' },
          { name: 'settings', mountPath: '/etc/settings' },
        ],
      },
    ],
  },
};

async function makeSettings(host: Host): Promise<void> {
  await kubectl(host, 'create', 'configmap', 'settings', '--from-literal=colour=blue');
}

const podSchema = z.object({
  metadata: z.object({
    name: z.string(),
    labels: z.record(z.string(), z.string()),
    annotations: z.record(z.string(), z.string()),
  }),
  spec: z.object({
    restartPolicy: z.string(),
    volumes: z.array(z.looseObject({ name: z.string() })),
    containers: z.array(z.looseObject({ volumeMounts: z.array(z.looseObject({ name: z.string() })) })),
  }),
  status: z.object({
    phase: z.string(),
    containerStatuses: z.array(z.object({ restartCount: z.int(), ready: z.boolean() })),
  }),
});

const isToken = ({ name }: { name: string }): boolean => name.startsWith('default-token-');

/** What must be the same wherever it is; what each cluster adds by itself is left out. */
async function viewOf(host: Host) {
  const { metadata, spec, status } = podSchema.parse(JSON.parse(await kubectl(host, 'get', 'pod', NAME, '-o', 'json')));
  return {
    status,
    kept: {
      name: metadata.name,
      labels: metadata.labels,
      annotations: Object.fromEntries(
        Object.entries(metadata.annotations).filter(([name]) => !name.startsWith('ums.')),
      ),
      restartPolicy: spec.restartPolicy,
      volumes: spec.volumes.filter((volume) => !isToken(volume)),
      containers: spec.containers.map((container) => ({
        ...container,
        volumeMounts: container.volumeMounts.filter((mount) => !isToken(mount)),
      })),
    },
  };
}

/** The restart policy and `kubectl delete` work on the moved pod as on any other. */
async function servesItsCluster(host: Host, bootId: string): Promise<void> {
  await host.exec('kubectl', [
    'exec',
    NAME,
    '--',
    'sh',
    '-c',
    'kill -9 $(cat /proc/1/task/1/children | cut -d" " -f1)',
  ]);
  const again = await until('its restart policy starts it', START_LIMIT_MS, async () => {
    const status = await statusOf(host, inside);
    return status.boot_id === bootId ? undefined : status;
  });
  assert.equal(again.generation, 2, 'its volume is the one it had');
  await kubectl(host, 'delete', 'pod', NAME, '--wait=true', '--grace-period=5');
  await nothingRemains(host);
}

void describe('kitchensink in a pod', { timeout: TEST_LIMIT_MS }, () => {
  void it('is refused, and left alone, while the other cluster lacks what it refers to', async () => {
    await makeSettings(alpha);
    await alpha.exec('kubectl', ['apply', '-f', '-'], { input: JSON.stringify(POD) });
    await untilReady(alpha, NAME, START_LIMIT_MS);
    await until('it works', START_LIMIT_MS, async () => (await verified(alpha, inside)).ok || undefined);
    const result = await migrateToEnd(alpha, NAME, 'beta', { technique: 'cold' });
    assert.notEqual(result.state, 'done');
    assert.match(JSON.stringify(result.error), /configmap settings/);
    await nothingRemains(beta);
    await until('it works as before', START_LIMIT_MS, async () => (await verified(alpha, inside)).ok || undefined);
  });

  void it('verifies itself after a move by each technique, and both clusters see it rightly', async (t) => {
    await makeSettings(beta);
    // The destination must receive the image with the first move.
    await beta.exec('ctr', ['-n', 'k8s.io', 'images', 'rm', '--sync', `localhost/${WORKLOAD}:latest`]);
    const { kept } = await viewOf(alpha);
    const first = await statusOf(alpha, inside);
    let [from, to] = [alpha, beta];
    let log: string[] = [];
    for (const technique of ['cold', 'hybrid', 'pre-copy', 'post-copy'] as const) {
      const before = await statusOf(from, inside);
      const result = await migrateToEnd(from, NAME, to.name, { technique });
      assert.equal(result.state, 'done', JSON.stringify(result.error));
      const verdict = await verified(to, inside);
      wentOn(before, verdict.status);
      const view = await until('the cluster says that it runs', START_LIMIT_MS, async () => {
        const seen = await viewOf(to);
        return seen.status.phase === 'Running' && seen.status.containerStatuses[0]?.ready === true ? seen : undefined;
      });
      assert.deepEqual(view.kept, kept, `what the cluster knows of it after ${technique}`);
      assert.equal(view.status.containerStatuses[0]?.restartCount, 0);
      const now = (await kubectl(to, 'logs', NAME)).split('\n');
      assert.deepEqual(now.slice(0, log.length), log, 'the log of before is the beginning of the log of now');
      assert.ok(now[0]?.includes(first.boot_id), `the log begins with the start: ${now[0]}`);
      log = now;
      await nothingRemains(from);
      t.diagnostic(`${technique}: ${result.downtime_ms} ms of downtime, ${result.total_ms} ms in all`);
      [from, to] = [to, from];
    }
    await moveByCommand(lab, from, NAME, to);
    wentOn(first, (await verified(to, inside)).status);
    await nothingRemains(from);
    await servesItsCluster(to, first.boot_id);
  });
});

void describe('a pod that is away', { timeout: TEST_LIMIT_MS }, () => {
  void it('is not begun anew by its restart policy until the agent says so', async () => {
    const name = 'away';
    const image = { image: 'localhost/busybox:latest', imagePullPolicy: 'Never', command: ['sleep', '1000'] };
    const pod = {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name },
      spec: { containers: [{ name: 'main', ...image }] },
    };
    await alpha.exec('kubectl', ['apply', '-f', '-'], { input: JSON.stringify(pod) });
    const driver = new RemoteDriver(alpha, 'kubernetes');
    const { handle } = await until('it runs', START_LIMIT_MS, async () => await driver.describe(name));
    await driver.freeze(handle);
    assert.equal(await driver.state(handle), 'frozen');
    const pids = await driver.processes(handle);
    await alpha.exec('kill', ['-9', ...pids.map(String)]);
    const path = 'jsonpath={.status.containerStatuses[0].state.waiting.reason}';
    await until('the kubelet has tried', START_LIMIT_MS, async () =>
      (await kubectl(alpha, 'get', 'pod', name, '-o', path)) === '' ? undefined : true,
    );
    assert.equal(await driver.state(handle), 'stopped');
    await driver.start(handle);
    assert.match(await kubectl(alpha, 'exec', name, '--', 'cat', '/proc/1/cmdline'), /sleep/);
    await kubectl(alpha, 'delete', 'pod', name, '--force', '--grace-period=0');
  });
});

void describe('a pod that cannot be moved', { timeout: TEST_LIMIT_MS }, () => {
  const REFUSED: [string, RegExp, object][] = [
    ['livenessProbe', /kubelet would take it for dead/, { livenessProbe: { tcpSocket: { port: 1 } } }],
    ['postStart', /postStart hook/, { lifecycle: { postStart: { exec: { command: ['true'] } } } }],
  ];

  void it('is refused with the reason', async () => {
    for (const [what, reason, more] of REFUSED) {
      const container = {
        name: 'main',
        image: 'localhost/busybox:latest',
        imagePullPolicy: 'Never',
        command: ['sleep', '1000'],
      };
      const pod = {
        apiVersion: 'v1',
        kind: 'Pod',
        metadata: { name: what.toLowerCase() },
        spec: { containers: [{ ...container, ...more }] },
      };
      await alpha.exec('kubectl', ['apply', '-f', '-'], { input: JSON.stringify(pod) });
      await assert.rejects(migrateToEnd(alpha, what.toLowerCase(), 'beta'), reason);
      await kubectl(alpha, 'delete', 'pod', what.toLowerCase(), '--force', '--grace-period=0');
    }
  });
});

async function summaryOf(pod: string): Promise<ServiceSummary | undefined> {
  return (await new RemoteDriver(alpha, 'kubernetes').list()).find(({ name }) => name === pod);
}

void describe('a pod that its cluster, or the other one, does not let go', { timeout: TEST_LIMIT_MS }, () => {
  before(() => runPod(alpha, 'plain'));
  after(() => removePod(alpha, 'plain'));

  for (const { what, code, words, pod, make, undo } of CIRCUMSTANCES) {
    void it(`is refused because ${what}, with what to do, and runs on`, async () => {
      try {
        await make(alpha, beta);
        const before = await summaryOf(pod);
        assert.equal(before?.state, 'running');
        failedWith(await attempt(alpha, pod, 'beta'), code, words);
        assert.deepEqual(await summaryOf(pod), before);
      } finally {
        await undo(alpha, beta);
      }
      await nothingRemains(beta);
    });
  }
});
