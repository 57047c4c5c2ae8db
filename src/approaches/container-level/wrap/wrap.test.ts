import { describe, expect, it } from 'vitest';
import { parse, parseAllDocuments } from 'yaml';
import { CAPABILITIES } from '../needs.ts';
import { wrapCompose } from './compose.ts';
import { wrapRunLine } from './docker-run.ts';
import type { WrapOptions } from './inner.ts';
import { wrapPod } from './pod.ts';
import { quoteWord, splitWords } from './words.ts';

const OPTIONS: WrapOptions = { capsule: 'ums-capsule:latest', peerPort: 7440, pairingPort: 7441 };
const GRANTS = [
  ...CAPABILITIES.map((name) => `--cap-add ${name}`),
  '--security-opt seccomp=unconfined --security-opt apparmor=unconfined',
].join(' ');
const wrapped = (line: string, options: Partial<WrapOptions> = {}) => wrapRunLine(line, { ...OPTIONS, ...options });

describe('a docker run line', () => {
  it('keeps what is the engine’s, and moves inside what is the program’s', () => {
    const line =
      'docker run -d --name cache -p 6379:6379 -e A=1 --restart=always -u app -w /data --memory 1g redis:7 redis-server --save ""';
    expect(wrapped(line).text).toBe(
      'docker run --detach --name cache --publish 6379:6379 --env A=1 --restart always --memory 1g ' +
        `${GRANTS} ums-capsule:latest --image redis:7 --user app --workdir /data redis-server --save ''\n`,
    );
  });

  it('puts volumes where nothing of the capsule lies, and hands them on', () => {
    const line = 'podman run -v data:/data:ro -v /var/log:/var/log --mount type=bind,src=/x,dst=/y,readonly img';
    expect(wrapped(line).text).toBe(
      'podman run --volume data:/srv/volumes/data:ro --volume /var/log:/srv/volumes/var/log ' +
        `--mount type=bind,src=/x,target=/srv/volumes/y,readonly ${GRANTS} ums-capsule:latest --image img ` +
        '--volume /srv/volumes/data:/data:ro --volume /srv/volumes/var/log:/var/log --volume /srv/volumes/y:/y:ro\n',
    );
  });

  it('gives a capability that the service asks for to both, and asks for nothing more when it is privileged', () => {
    expect(wrapped('docker run --cap-add IPC_LOCK --cap-drop ALL img').text).toContain(
      '--image img --cap-add IPC_LOCK --cap-drop ALL',
    );
    const privileged = wrapped('docker run --privileged img').text;
    expect(privileged).toBe('docker run --privileged ums-capsule:latest --image img --cap-add ALL\n');
  });

  it('mounts an archive of the image, publishes the agent’s ports, and keeps the service’s own flags apart', () => {
    const { text } = wrapped('docker run img -x', { archive: '/srv/a.tar', peerAddress: '192.0.2.1', peerPort: 7450 });
    expect(text).toContain('--volume /srv/a.tar:/srv/image.tar:ro --publish 7450:7450 --publish 7441:7441');
    expect(text).toContain('--env UMS_CAPSULE_PEER_ADDRESS=192.0.2.1 --env UMS_CAPSULE_PEER_PORT=7450');
    expect(text).toMatch(/--image \/srv\/image\.tar -- -x\n$/);
  });

  it('keeps what the shell shall replace, and what it shall not', () => {
    const { text } = wrapped(`docker run -e A=$HOME -e 'B=$HOME' -e "C=a \\"b\\"" \\\n img`);
    expect(text).toContain(`--env "A=$HOME" --env 'B=$HOME' --env 'C=a "b"'`);
  });

  it('asks the service for its health from outside', () => {
    const { text } = wrapped(`docker run --health-cmd 'curl -f localhost' --health-interval 5s img`);
    expect(text).toContain(`--health-cmd 'ums capsule exec /bin/sh -c '\\''curl -f localhost'\\'''`);
    expect(text).toContain('--health-interval 5s');
  });

  it('says what it leaves out and refuses what it does not know', () => {
    expect(wrapped('docker run --init --security-opt no-new-privileges img').notes).toHaveLength(2);
    for (const line of [
      'docker run -it img',
      'docker run --gpus all img',
      'docker run --pid host img',
      'docker run -z img',
      'docker run -d',
      'docker ps',
      'docker run img; rm -rf /',
      'docker run $(id) img',
      "docker run 'img",
    ]) {
      expect(() => wrapped(line), line).toThrow(/cannot be wrapped/);
    }
  });
});

it('words are the same after being quoted and split again', () => {
  for (const text of ['a', "it's", 'a b', '"', '\\', '*', '', '$x', '#']) {
    expect(splitWords(quoteWord({ text, expands: false }))).toEqual([{ text, expands: false }]);
  }
});

describe('a compose file', () => {
  const FILE = `# mine
services:
  cache:
    image: redis:7 # the database
    command: redis-server --save ''
    user: "100"
    ports: ["6379:6379"]
    volumes: [data:/data, {type: bind, source: ./conf, target: /conf, read_only: true}]
    environment: {A: 1}
    healthcheck: {test: [CMD, redis-cli, ping], interval: 5s}
  web:
    image: nginx
volumes:
  data: {}
`;

  it('has one service in a capsule, and the rest as it was', () => {
    const { text } = wrapCompose(FILE, 'cache', { ...OPTIONS, peerAddress: '192.0.2.1' });
    expect(text.startsWith('# mine\n')).toBe(true);
    expect(parse(text)).toEqual({
      services: {
        cache: {
          image: 'ums-capsule:latest',
          command: [
            '--image',
            'redis:7',
            '--user',
            '100',
            '--volume',
            '/srv/volumes/data:/data',
            '--volume',
            '/srv/volumes/conf:/conf:ro',
            'redis-server',
            '--save',
            '',
          ],
          ports: ['6379:6379', '7440:7440', '7441:7441'],
          volumes: [
            'data:/srv/volumes/data',
            { type: 'bind', source: './conf', target: '/srv/volumes/conf', read_only: true },
          ],
          environment: { A: '1', UMS_CAPSULE_PEER_ADDRESS: '192.0.2.1' },
          healthcheck: { test: ['CMD', 'ums', 'capsule', 'exec', 'redis-cli', 'ping'], interval: '5s' },
          cap_add: [...CAPABILITIES],
          security_opt: ['seccomp=unconfined', 'apparmor=unconfined'],
        },
        web: { image: 'nginx' },
      },
      volumes: { data: {} },
    });
  });

  it('refuses what it does not know', () => {
    expect(() => wrapCompose(FILE, undefined, OPTIONS)).toThrow(/--service: cache, web/);
    expect(() => wrapCompose('services: {a: {image: x, pid: host}}', undefined, OPTIONS)).toThrow(/pid of a/);
    expect(() => wrapCompose('services: {a: {build: .}}', undefined, OPTIONS)).toThrow(/cannot be wrapped/);
    expect(() => wrapCompose('services: [', undefined, OPTIONS)).toThrow(/compose file/);
  });
});

describe('a manifest', () => {
  const DEPLOYMENT = `apiVersion: v1
kind: Service
metadata: {name: cache}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: cache}
spec:
  template:
    spec:
      securityContext: {runAsUser: 100}
      containers:
      - name: cache
        image: redis:7
        command: [redis-server, /etc/redis.conf]
        args: [--save, ""]
        env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]
        resources: {limits: {memory: 1Gi}}
        volumeMounts: [{name: data, mountPath: /data}]
        readinessProbe: {exec: {command: [redis-cli, ping]}}
        livenessProbe: {tcpSocket: {port: 6379}}
`;

  it('has its container in a capsule, with probes that look inside', () => {
    const { text } = wrapPod(DEPLOYMENT, undefined, OPTIONS);
    const [service, deployment] = parseAllDocuments(text).map((document): unknown => document.toJSON());
    expect(service).toEqual({ apiVersion: 'v1', kind: 'Service', metadata: { name: 'cache' } });
    expect(deployment).toMatchObject({
      spec: {
        template: {
          spec: {
            containers: [
              {
                name: 'cache',
                image: 'ums-capsule:latest',
                args: [
                  '--image',
                  'redis:7',
                  '--entrypoint',
                  'redis-server',
                  '--user',
                  '100',
                  '--volume',
                  '/srv/volumes/data:/data',
                  '/etc/redis.conf',
                  '--save',
                  '',
                ],
                env: [
                  { name: 'A', valueFrom: { secretKeyRef: { name: 's', key: 'k' } } },
                  { name: 'UMS_CAPSULE_PEER_ADDRESS', valueFrom: { fieldRef: { fieldPath: 'status.podIP' } } },
                ],
                resources: { limits: { memory: '1Gi' } },
                volumeMounts: [{ name: 'data', mountPath: '/srv/volumes/data' }],
                readinessProbe: { exec: { command: ['ums', 'capsule', 'exec', 'redis-cli', 'ping'] } },
                livenessProbe: { tcpSocket: { port: 6379 } },
                securityContext: {
                  runAsUser: 0,
                  capabilities: { add: [...CAPABILITIES] },
                  seccompProfile: { type: 'Unconfined' },
                },
              },
            ],
          },
        },
      },
    });
    expect(text).not.toContain('command: [redis-server');
  });

  it('takes the archive from the node, and refuses what makes no Pods', () => {
    const { text } = wrapPod(DEPLOYMENT, 'cache', { ...OPTIONS, archive: '/srv/redis.tar' });
    expect(text).toContain('path: /srv/redis.tar');
    expect(() => wrapPod('apiVersion: v1\nkind: Service\n', undefined, OPTIONS)).toThrow(/neither a Pod/);
    expect(() => wrapPod(DEPLOYMENT, 'other', OPTIONS)).toThrow(/--service: cache/);
  });
});
