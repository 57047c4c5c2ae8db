import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, describe, it } from 'node:test';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import { until } from './support/moves.ts';

/** Each host with Kubernetes is a cluster: pods run, are replicated, are found by a service; and all of it goes with it. */
const TEST_LIMIT_MS = 300_000;
const POD_LIMIT_MS = 60_000;
/** What the kubelet would set if it could, one for the whole machine. */
const MACHINES_OWN = ['vm/overcommit_memory', 'vm/panic_on_oom', 'kernel/panic', 'kernel/panic_on_oops'];

const lab = Lab.open();
let alpha: Host;
let machine: string[];

const parameters = (): string[] => MACHINES_OWN.map((name) => readFileSync(`/proc/sys/${name}`, 'utf8').trim());

before(async () => {
  machine = parameters();
  await lab.up({ hosts: ['alpha'], engines: ['kubernetes'], agents: false });
  alpha = lab.host('alpha');
});

after(() => lab.down());

async function kubectl(...words: string[]): Promise<string> {
  return (await alpha.exec('kubectl', words, { timeout_ms: POD_LIMIT_MS })).stdout.trim();
}

/** A deployment of a web server that says its own name, and a service in front of it. */
const WEB = {
  apiVersion: 'v1',
  kind: 'List',
  items: [
    {
      apiVersion: 'apps/v1',
      kind: 'Deployment',
      metadata: { name: 'web' },
      spec: {
        replicas: 1,
        selector: { matchLabels: { app: 'web' } },
        template: {
          metadata: { labels: { app: 'web' } },
          spec: {
            containers: [
              {
                name: 'web',
                image: 'localhost/busybox:latest',
                imagePullPolicy: 'Never',
                command: ['sh', '-c', 'mkdir -p /srv && hostname >/srv/index.html && exec httpd -f -p 8080 -h /srv'],
                readinessProbe: { tcpSocket: { port: 8080 }, periodSeconds: 1 },
              },
            ],
          },
        },
      },
    },
    {
      apiVersion: 'v1',
      kind: 'Service',
      metadata: { name: 'web' },
      spec: { selector: { app: 'web' }, ports: [{ port: 80, targetPort: 8080 }] },
    },
  ],
};

void describe('a test host with Kubernetes', { timeout: TEST_LIMIT_MS }, () => {
  void it('has a node that is ready, and the machine keeps its own parameters', async () => {
    assert.match(await kubectl('get', 'nodes'), /^alpha\s+Ready\s/m);
    assert.deepEqual(parameters(), machine);
  });

  void it('runs a pod, which may ask the API by its account, and gives it back its words', async () => {
    const script = 'test -s /var/run/secrets/kubernetes.io/serviceaccount/token && echo has a token; sleep 1000';
    await kubectl(
      'run',
      'one',
      '--image=localhost/busybox:latest',
      '--image-pull-policy=Never',
      '--',
      'sh',
      '-c',
      script,
    );
    await until('its log', POD_LIMIT_MS, async () =>
      (await kubectl('logs', 'one')) === 'has a token' ? true : undefined,
    );
    assert.equal(await kubectl('exec', 'one', '--', 'echo', 'within'), 'within');
    await kubectl('delete', 'pod', 'one', '--grace-period=0', '--force');
  });

  void it('scales a deployment, and a service leads clients within the cluster to all of its pods', async () => {
    await alpha.exec('kubectl', ['apply', '-f', '-'], { input: JSON.stringify(WEB) });
    await kubectl('scale', 'deployment', 'web', '--replicas=2');
    await kubectl('rollout', 'status', 'deployment', 'web', '--timeout=60s');
    const names = (await kubectl('get', 'pods', '-l', 'app=web', '-o', 'jsonpath={.items[*].metadata.name}')).split(
      ' ',
    );
    assert.equal(names.length, 2);
    const heard = new Set<string>();
    await until('both answer', POD_LIMIT_MS, async () => {
      const ask = 'wget -q -T 5 -O - "$0"';
      const address = `http://${await kubectl('get', 'service', 'web', '-o', 'jsonpath={.spec.clusterIP}')}/`;
      heard.add(await kubectl('exec', names[0] ?? '', '--', 'sh', '-c', ask, address));
      return heard.size === 2 ? true : undefined;
    });
    assert.deepEqual([...heard].sort(), names.toSorted());
  });

  void it('lets the restricted user look and do nothing', async () => {
    assert.match(await kubectl('--context', 'restricted', 'get', 'pods'), /web-/);
    await assert.rejects(kubectl('--context', 'restricted', 'delete', 'service', 'web'), /forbidden/);
    await assert.rejects(kubectl('--context', 'restricted', 'get', 'secrets'), /forbidden/);
  });

  void it('has its deployments again after a power cut', async () => {
    await lab.killHost('alpha');
    await lab.restartHost('alpha');
    await lab.up({ engines: ['kubernetes'], agents: false });
    alpha = lab.host('alpha');
    await until('two pods are ready', 2 * POD_LIMIT_MS, async () => {
      const ready = await kubectl('get', 'deployment', 'web', '-o', 'jsonpath={.status.readyReplicas}');
      const running = await lsContainers();
      return ready === '2' && running >= 2 ? true : undefined;
    });
  });
});

/** Containers that run now, as the runtime counts them: what a cluster says of a node lags behind. */
async function lsContainers(): Promise<number> {
  const { stdout } = await alpha.exec('sh', ['-c', 'pgrep -c httpd || true']);
  return Number(stdout.trim());
}
