import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import { z } from 'zod';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import { apply, kubectl } from './support/deployments.ts';
import { migrateToEnd, until } from './support/moves.ts';
import { nothingRemains } from './support/pods.ts';
import { type InContainer, statusOf, verified, wentOn, WORKLOAD } from './support/workload.ts';

/** Pods of two containers that share a volume and talk over localhost: they move as one, or not at all. */
const TEST_LIMIT_MS = 300_000;
const SEEN_LIMIT_MS = 60_000;
const EXEC_LIMIT_MS = 30_000;

const lab = Lab.open();
let alpha: Host;
let beta: Host;

before(async () => {
  await lab.up({ engines: ['kubernetes'] });
  alpha = lab.host('alpha');
  beta = lab.host('beta');
});

interface Wanted {
  name: string;
  image: string;
  command: string[];
  volumeMounts?: object[];
}

function podOf(name: string, volumes: object[], containers: Wanted[]): object {
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name },
    spec: {
      terminationGracePeriodSeconds: 2,
      volumes: [{ name: 'data', emptyDir: {} }, ...volumes],
      containers: containers.map((container) => ({
        volumeMounts: [{ name: 'data', mountPath: '/data' }],
        ...container,
        image: `localhost/${container.image}:latest`,
        imagePullPolicy: 'IfNotPresent',
      })),
    },
  };
}

const statusesSchema = z.object({
  status: z.object({
    phase: z.string(),
    containerStatuses: z.array(z.object({ name: z.string(), ready: z.boolean(), restartCount: z.int() })),
  }),
});

/** Both of its containers run, as its cluster sees it, and neither was started a second time. */
async function bothRun(host: Host, name: string): Promise<void> {
  const { status } = await until(`${name} runs on ${host.name}`, SEEN_LIMIT_MS, async () => {
    const seen = statusesSchema.parse(JSON.parse(await kubectl(host, 'get', 'pod', name, '-o', 'json')));
    return seen.status.containerStatuses.every(({ ready }) => ready) ? seen : undefined;
  });
  assert.equal(status.phase, 'Running');
  assert.deepEqual(
    status.containerStatuses.map(({ restartCount }) => restartCount),
    [0, 0],
  );
}

/** Runs a command in one of the containers. */
const inside =
  (pod: string, container: string): InContainer =>
  (host, args) =>
    host.exec('kubectl', ['exec', pod, '-c', container, '--', ...args], {
      timeout_ms: EXEC_LIMIT_MS,
      okExitCodes: [0, 1],
    });

const PAIR = 'pair';
const sink = inside(PAIR, 'sink');
const visitor = inside(PAIR, 'visitor');

/** Counts in a variable, asks its neighbour over localhost each time, and keeps a file of its cluster open until told to close it. */
const VISITOR = `
mkdir -p /data/visitor
exec 3</etc/settings/colour
n=0
while :; do
  if [ -e /data/visitor/close ]; then exec 3<&-; : >/data/visitor/closed; fi
  n=$((n+1))
  echo "$n $(nc 127.0.0.1 7777 </dev/null)" >>/data/visitor/visits
  sleep 0.1
done`;

const settings = { name: 'settings', configMap: { name: 'settings' } };
const PAIR_POD = podOf(
  PAIR,
  [settings],
  [
    { name: 'sink', image: WORKLOAD, command: [WORKLOAD, 'run', '--bind', '0.0.0.0', '--mib', '4'] },
    {
      name: 'visitor',
      image: 'busybox',
      command: ['sh', '-c', VISITOR],
      volumeMounts: [
        { name: 'data', mountPath: '/data' },
        { name: 'settings', mountPath: '/etc/settings' },
      ],
    },
  ],
);

/** What the visitor noted, as its neighbour sees it in their volume. */
async function visits(host: Host): Promise<string[]> {
  const { stdout } = await sink(host, ['cat', '/data/visitor/visits']);
  return stdout.split('\n').slice(0, -1);
}

/** It visits again, the count in its memory has no gap, and hardly a visit found nobody. */
async function visitorWentOn(host: Host, before: readonly string[], unanswered_max: number): Promise<void> {
  const now = await until('the visitor visits', SEEN_LIMIT_MS, async () => {
    const seen = await visits(host);
    return seen.length >= before.length + 5 ? seen : undefined;
  });
  assert.deepEqual(now.slice(0, before.length), before);
  assert.deepEqual(
    now.map((line) => Number(line.split(' ')[0])),
    now.map((_, at) => at + 1),
  );
  const { boot_id } = await statusOf(host, sink);
  const isAnswer = (line: string) => line.endsWith(` ${WORKLOAD} ${boot_id}`);
  // It may have begun before its neighbour listened.
  const unanswered = now.slice(now.findIndex(isAnswer)).filter((line) => !isAnswer(line));
  assert.ok(unanswered.length <= unanswered_max, `${unanswered.length} unanswered: ${unanswered.join('; ')}`);
}

void describe('a pod of two containers', { timeout: TEST_LIMIT_MS }, () => {
  void it('stays as it was when only the second can not be restored', async () => {
    for (const host of [alpha, beta]) {
      await kubectl(host, 'create', 'configmap', 'settings', '--from-literal=colour=blue');
    }
    // The destination receives both images.
    for (const image of [WORKLOAD, 'busybox']) {
      await beta.exec('ctr', ['-n', 'k8s.io', 'images', 'rm', '--sync', `localhost/${image}:latest`]);
    }
    await apply(alpha, PAIR_POD);
    await bothRun(alpha, PAIR);
    await until('it works', SEEN_LIMIT_MS, async () => (await verified(alpha, sink)).ok || undefined);
    await until('the visitor visits', SEEN_LIMIT_MS, async () => (await visits(alpha)).length > 20 || undefined);
    const [status, seen] = [await statusOf(alpha, sink), await visits(alpha)];
    await assert.rejects(migrateToEnd(alpha, PAIR, 'beta', { technique: 'hybrid' }).then(mustBeDone), /2 containers/);
    // A config map lies in a directory named after the time, so the file that the visitor has open is not there.
    const result = await migrateToEnd(alpha, PAIR, 'beta', { technique: 'cold' });
    assert.equal(result.state, 'aborted');
    assert.equal(result.error?.code, 'UMS_E_RESTORE', JSON.stringify(result.error));
    assert.match(JSON.stringify(result.error), /colour/);
    await nothingRemains(beta);
    wentOn(status, (await verified(alpha, sink)).status);
    await visitorWentOn(alpha, seen, 1);
    await bothRun(alpha, PAIR);
  });

  void it('moves there and back as one', async (t) => {
    await visitor(alpha, ['touch', '/data/visitor/close']);
    await until('it is closed', SEEN_LIMIT_MS, async () =>
      (await visitor(alpha, ['ls', '/data/visitor/closed'])).exitCode === 0 ? true : undefined,
    );
    const first = await statusOf(alpha, sink);
    let [from, to] = [alpha, beta];
    for (const unanswered of [2, 3]) {
      const [status, seen] = [await statusOf(from, sink), await visits(from)];
      const result = await migrateToEnd(from, PAIR, to.name);
      assert.equal(result.state, 'done', JSON.stringify(result.error));
      t.diagnostic(`to ${to.name}: ${result.downtime_ms} ms of downtime, ${result.total_ms} ms in all`);
      wentOn(status, (await verified(to, sink)).status);
      await visitorWentOn(to, seen, unanswered);
      await bothRun(to, PAIR);
      assert.ok((await kubectl(to, 'logs', PAIR, '-c', 'sink')).includes(first.boot_id), 'its log came along');
      await nothingRemains(from);
      [from, to] = [to, from];
    }
    await kubectl(from, 'delete', 'pod', PAIR, '--force', '--grace-period=0');
    await nothingRemains(from);
  });
});

const TALK = 'talk';
const PORT = 7070;
const heart = inside(TALK, 'heart');
const asker = inside(TALK, 'asker');
const TALK_POD = podOf(
  TALK,
  [],
  [
    {
      name: 'heart',
      image: 'pulse',
      command: ['pulse', 'hold', '--size', '8', '--dirty', '500', '--port', `${PORT}`, '--log', '/data/heart'],
    },
    {
      name: 'asker',
      image: 'pulse',
      command: ['pulse', 'ask', '127.0.0.1', `${PORT}`, '20000', '/data/answers'],
    },
  ],
);

/** Addresses of the asker's connection: a new one would have another port of its own. */
async function connection(host: Host): Promise<string> {
  const hex = PORT.toString(16).toUpperCase().padStart(4, '0');
  const { stdout } = await asker(host, ['grep', ` 0100007F:${hex} 01 `, '/proc/net/tcp']);
  const [, own = '', other = '', ...more] = stdout.trim().split(/\s+/);
  assert.ok(more.length > 0, `one connection: ${stdout}`);
  return `${own} ${other}`;
}

/** How many of the asker's questions were answered, as its neighbour sees it in their volume. */
async function answered(host: Host): Promise<number> {
  const { stdout } = await heart(host, ['sh', '-c', 'grep -c . /data/answers; tail -n 1 /data/answers']);
  return Number(/^(?:beat|late) (\d+) /m.exec(stdout)?.[1] ?? '0');
}

void describe('a connection between the containers of a pod', { timeout: TEST_LIMIT_MS }, () => {
  void it('is the same after a move', async (t) => {
    await apply(alpha, TALK_POD);
    await bothRun(alpha, TALK);
    await until('it is answered', SEEN_LIMIT_MS, async () => ((await answered(alpha)) >= 100 ? true : undefined));
    const [before, count] = [await connection(alpha), await answered(alpha)];
    const result = await migrateToEnd(alpha, TALK, 'beta');
    assert.equal(result.state, 'done', JSON.stringify(result.error));
    t.diagnostic(`${result.downtime_ms} ms of downtime, ${result.total_ms} ms in all`);
    await until('it is answered again', SEEN_LIMIT_MS, async () =>
      (await answered(beta)) >= count + 100 ? true : undefined,
    );
    assert.equal(await connection(beta), before, 'the same connection');
    await heart(beta, ['kill', '-USR1', '1']);
    const checksum = await until('its memory was looked at', SEEN_LIMIT_MS, async () => {
      const { stdout } = await asker(beta, ['grep', '^checksum', '/data/heart']);
      return stdout === '' ? undefined : stdout;
    });
    assert.match(checksum, /^checksum ok/);
    await bothRun(beta, TALK);
    await nothingRemains(alpha);
    await kubectl(beta, 'delete', 'pod', TALK, '--force', '--grace-period=0');
    await nothingRemains(beta);
  });
});

function mustBeDone({ state, error }: { state: string; error: unknown }): void {
  if (state !== 'done') throw new Error(JSON.stringify(error));
}
