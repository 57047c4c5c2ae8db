import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { agentPids } from '#lab/agents.ts';
import { processesIn } from '#lab/cgroup.ts';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import { mountsBeneath } from '#lab/trees.ts';

/** The lab itself: what it promises to tests, benchmarks and people. */
const lab = Lab.open();
const MAIN = resolve(import.meta.dirname, '../../lab/main.ts');
const NODE = ['--disable-warning=ExperimentalWarning', MAIN];
const LIMIT = { timeout: 120_000 };

function cli(
  args: readonly string[],
  input = '',
): { status: number | null; signal: string | null; stdout: string; stderr: string } {
  return spawnSync(process.execPath, [...NODE, ...args], { input, encoding: 'utf8', timeout: 60_000 });
}

/** What the machine itself shows of networks and mounts: a lab shall add nothing to it. */
function machine(): { interfaces: string; mounts: string[] } {
  const interfaces = spawnSync('ip', ['-br', 'link'], { encoding: 'utf8' }).stdout;
  return { interfaces, mounts: mountsBeneath(lab.paths.root, readFileSync('/proc/self/mountinfo', 'utf8')) };
}

async function reaches(from: Host, to: Host): Promise<boolean> {
  const result = await from.exec('ping', ['-c', '1', '-W', '1', to.address], { okExitCodes: [0, 1] });
  return result.exitCode === 0;
}

let atFirst: ReturnType<typeof machine>;
before(async () => {
  await lab.down();
  atFirst = machine();
  await lab.up();
});
after(() => lab.down());

test('up is harmless when everything is there', LIMIT, async () => {
  const earlier = lab.hosts.map((host) => [host.pid, agentPids(host)]);
  await lab.up();
  assert.deepEqual(
    lab.hosts.map((host) => [host.pid, agentPids(host)]),
    earlier,
    'the same hosts and agents go on',
  );
  assert.deepEqual(machine(), atFirst, 'nothing shows outside of the hosts');
});

test('a host is a system of its own with a CRIU that works', LIMIT, async () => {
  const [alpha, beta] = [lab.host('alpha'), lab.host('beta')];
  const { stdout } = await alpha.exec('sh', [
    '-c',
    'hostname; grep ^0:: /proc/self/cgroup; cat /proc/1/comm; readlink /proc/self/ns/net',
  ]);
  const [hostname, cgroup, first, network] = stdout.trim().split('\n');
  assert.deepEqual([hostname, cgroup, first], ['alpha', '0::/init', 'tini']);
  assert.notEqual((await beta.exec('readlink', ['/proc/self/ns/net'])).stdout.trim(), network);
  assert.match((await alpha.exec('criu', ['--version'])).stdout, /4\.\d/);
  assert.match((await alpha.exec('criu', ['check'])).stdout, /Looks good/);
  await alpha.exec('touch', ['/only-on-alpha']);
  assert.equal((await beta.exec('test', ['-e', '/only-on-alpha'], { okExitCodes: [0, 1] })).exitCode, 1);
});

test('exec passes input, output, errors and the exit code', LIMIT, () => {
  const result = cli(['exec', 'alpha', '--', 'sh', '-c', 'cat; echo to-stderr >&2; exit 7'], 'bytes in\n');
  assert.deepEqual([result.status, result.stdout], [7, 'bytes in\n']);
  assert.match(result.stderr, /to-stderr/);
  assert.equal(
    cli(['exec', 'alpha', '--', 'sh', '-c', 'kill -TERM $$']).signal,
    'SIGTERM',
    'it ends as the command ended',
  );
  assert.equal(cli(['exec', 'alpha', '--', '/nowhere']).status, 127);
  assert.equal(cli(['exec', 'nobody', '--', 'true']).status, 2);
});

test('exec passes signals', LIMIT, async () => {
  const script = 'trap "echo caught; exit 9" USR1; echo ready; while :; do sleep 0.05; done';
  const child = spawn(process.execPath, [...NODE, 'exec', 'beta', '--', 'sh', '-c', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let output = '';
  const ended = new Promise<number | null>((fulfil) => child.once('close', fulfil));
  child.stdout.on('data', (chunk: Buffer) => {
    if (output === '') child.kill('SIGUSR1');
    output += chunk.toString();
  });
  assert.equal(await ended, 9);
  assert.equal(output, 'ready\ncaught\n');
});

test('a command ends with the command that runs it', LIMIT, async () => {
  const child = spawn(process.execPath, [...NODE, 'exec', 'beta', '--', 'sleep', '54321'], { stdio: 'ignore' });
  const beta = lab.host('beta');
  const sleeping = async (): Promise<boolean> =>
    (await beta.exec('pgrep', ['-f', '^sleep 54321'], { okExitCodes: [0, 1] })).exitCode === 0;
  for (let tries = 0; tries < 200 && !(await sleeping()); tries++) await sleep(20);
  child.kill('SIGKILL');
  for (let tries = 0; tries < 200 && (await sleeping()); tries++) await sleep(20);
  assert.equal(await sleeping(), false);
});

test('the agents know each other', LIMIT, async () => {
  for (const [host, other] of [
    ['alpha', 'beta'],
    ['beta', 'alpha'],
  ] as const) {
    const { stdout } = await lab.host(host).exec('ums', ['systems', '--json']);
    assert.match(stdout, new RegExp(`"${other}"`));
  }
});

test('a link is what it is asked to be, by measurement', LIMIT, async () => {
  const shaped = await lab.link({ rate: '50mbit', delay_ms: 10 });
  assert.ok(shaped.rtt_min_ms >= 20 && shaped.rtt_min_ms < 24, `round trip ${shaped.rtt_min_ms} ms`);
  assert.ok(shaped.rate_bps > 40e6 && shaped.rate_bps < 52e6, `rate ${shaped.rate_bps}`);
  const lossy = await lab.link({ rate: 'max', delay_ms: 0, loss_percent: 5 });
  assert.ok(lossy.loss_percent > 5 && lossy.loss_percent < 16, `${lossy.loss_percent} % of pings; 9.75 expected`);
  const perfect = await lab.link({ loss_percent: 0 });
  assert.ok(perfect.rtt_min_ms < 2 && perfect.rate_bps > 500e6, JSON.stringify(perfect));
});

test('partitions cut one way or both, and heal', LIMIT, async () => {
  const [alpha, beta] = [lab.host('alpha'), lab.host('beta')];
  const heard = async (): Promise<boolean> => {
    // UDP needs no answer, so it tells one direction from the other.
    const listening = beta.exec('timeout', ['2', 'python3', '-c', LISTEN], { okExitCodes: [0, 124] });
    await alpha.exec('python3', ['-c', SEND.replace('ADDRESS', beta.address)]);
    return (await listening).stdout.includes('heard');
  };
  // Neighbours must be known before a one-way cut, as they would be between hosts that have talked.
  assert.ok(await reaches(alpha, beta));
  await lab.partition('beta', 'alpha', { oneWay: true });
  assert.equal(await reaches(alpha, beta), false, 'the answer does not come back');
  assert.ok(await heard(), 'the question arrives');
  await lab.heal();
  await lab.partition('alpha', 'beta');
  assert.equal(await heard(), false);
  await lab.setLink({ delay_ms: 2 });
  assert.equal(await reaches(beta, alpha), false, 'a partition holds under the emulator, too');
  await lab.heal();
  assert.ok(await reaches(alpha, beta));
  await lab.setLink({ delay_ms: 0 });
});

const LISTEN = `
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 7999)); s.recv(16); print('heard')
`;
const SEND = `
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(40): s.sendto(b'x', ('ADDRESS', 7999)); time.sleep(0.02)
`;

test('a killed host keeps its disk and comes back with its agent', LIMIT, async () => {
  const beta = lab.host('beta');
  await beta.exec('sh', ['-c', 'echo kept > /srv/file; echo kept > /root/file; echo lost > /run/file']);
  await lab.killHost('beta');
  assert.deepEqual([beta.running, beta.processes()], [false, []]);
  await lab.restartHost('beta');
  await lab.startAgent('beta');
  const { stdout } = await beta.exec('sh', ['-c', 'cat /srv/file /root/file; ls /run/file 2>&1 || true']);
  assert.match(stdout, /^kept\nkept\n.*No such file/s);
  assert.ok(await reaches(lab.host('alpha'), beta));
});

test('a killed agent leaves the rest of the host alone', LIMIT, async () => {
  const alpha = lab.host('alpha');
  const first = alpha.pid;
  await lab.killAgent('alpha');
  assert.deepEqual(agentPids(alpha), []);
  await lab.startAgent('alpha');
  assert.equal(agentPids(alpha).length, 1);
  assert.equal(alpha.pid, first);
});

test('a prepared image runs in Podman', LIMIT, async () => {
  const alpha = lab.host('alpha');
  const image = await alpha.importImage('redis');
  await alpha.exec('podman', [
    'run',
    '-d',
    '--name',
    'r',
    '-p',
    '6379:6379',
    image,
    'redis-server',
    '--protected-mode',
    'no',
  ]);
  const answer = (): Promise<{ stdout: string }> =>
    alpha.exec('podman', ['exec', 'r', 'redis-cli', 'ping'], { okExitCodes: [0, 1] });
  for (let tries = 0; tries < 100 && (await answer()).stdout.trim() !== 'PONG'; tries++) await sleep(50);
  const over = 'exec 3<>/dev/tcp/alpha/6379; echo PING >&3; head -1 <&3';
  assert.match((await lab.host('beta').exec('bash', ['-c', over])).stdout, /PONG/);
  await alpha.exec('podman', ['rm', '-f', '-t', '0', 'r']);
});

test('containerd runs beside Docker, each with its own paths, and knows prepared images', LIMIT, async () => {
  await lab.up({ engines: ['containerd', 'docker'] });
  const alpha = lab.host('alpha');
  const image = await alpha.importImage('busybox', 'containerd');
  assert.equal(await alpha.importImage('busybox', 'containerd'), image);
  const run = ['run', '--rm', '--cpu-shares', '0', image, 'c', 'sh', '-c', 'echo it runs'];
  assert.equal((await alpha.exec('ctr', run)).stdout.trim(), 'it runs');
  const docker = await alpha.exec('docker', ['info', '--format', '{{.Containers}} {{.Driver}}']);
  assert.equal(docker.stdout.trim(), '0 overlay2');
  assert.ok(alpha.readFile('/run/docker/containerd/containerd.pid').trim() !== '');
});

test('down leaves nothing, also after a crash', LIMIT, async () => {
  await lab.setLink({ delay_ms: 1 });
  await lab.up({ hosts: ['gamma'] });
  const wire = lab.wirePid;
  assert.ok(wire !== undefined);
  // The state is lost and the wire is dead.
  spawnSync('rm', ['-f', lab.paths.state]);
  process.kill(wire, 'SIGKILL');
  await lab.down();
  assert.deepEqual(processesIn(lab.cgroup), []);
  assert.deepEqual([existsSync(lab.cgroup), existsSync(lab.paths.root)], [false, false]);
  assert.deepEqual(machine(), atFirst);
  await lab.down();
});
