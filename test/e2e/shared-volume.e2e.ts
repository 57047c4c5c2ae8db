import assert from 'node:assert/strict';
import { after, before, it } from 'node:test';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import { migrateToEnd } from './support/moves.ts';

/** A volume that both systems mount from the same storage is mounted there and not copied, and nobody removes it. */
const NAME = 'sharing';
const VOLUME = 'sharing-data';
/** Each host has its own here, so that a copy would show. */
const STORAGE = '/srv/sharing';

const lab = Lab.open();
let alpha: Host;
let beta: Host;

async function shell(host: Host, script: string): Promise<string> {
  return (await host.exec('sh', ['-ec', script])).stdout.trim();
}

async function makeVolume(host: Host, labels: readonly string[] = []): Promise<void> {
  const options = ['type=none', 'o=bind', `device=${STORAGE}`].flatMap((option) => ['--opt', option]);
  const flags = [...options, ...labels.flatMap((label) => ['--label', label])];
  await host.exec('podman', ['volume', 'create', ...flags, VOLUME]);
}

async function start(host: Host): Promise<void> {
  const image = await host.importImage('memhog');
  const args = ['memhog', '4', '100', '/tmp/ticks'];
  await host.exec('podman', ['run', '--detach', '--name', NAME, '--volume', `${VOLUME}:/data`, image, ...args]);
}

async function removeAll(): Promise<void> {
  for (const host of lab.hosts) {
    await host.exec('podman', ['rm', '--force', '--time', '0', '--ignore', NAME]);
    await host.exec('podman', ['volume', 'rm', '--force', VOLUME]);
    await shell(host, `rm -rf ${STORAGE}`);
  }
}

before(async () => {
  await lab.up();
  alpha = lab.host('alpha');
  beta = lab.host('beta');
  await removeAll();
  for (const host of [alpha, beta]) await shell(host, `mkdir -p ${STORAGE}; echo ${host.name} >${STORAGE}/whose`);
});
after(removeAll);

/** What the service sees in its volume. */
async function seen(host: Host): Promise<string> {
  const pid = (await host.exec('podman', ['inspect', '--format', '{{.State.Pid}}', NAME])).stdout.trim();
  return shell(host, `cat /proc/${pid}/root/data/whose`);
}

async function refused(options: object, reason: RegExp): Promise<void> {
  const { state, error } = await migrateToEnd(alpha, NAME, 'beta', options);
  assert.equal(state, 'aborted');
  assert.equal(error?.code, 'UMS_E_PREFLIGHT');
  assert.match(error?.detail ?? '', reason);
}

void it('is only mounted, there and back', { timeout: 240_000 }, async () => {
  await makeVolume(alpha);
  await start(alpha);
  await refused({}, /has a driver or driver options/);
  await refused({ sharedVolumes: ['nothing'] }, /no volume named nothing/);
  await refused({ sharedVolumes: [VOLUME] }, /no volume named sharing-data here/);
  await makeVolume(beta);
  for (const [from, to] of [
    [alpha, beta],
    [beta, alpha],
  ] as const) {
    const result = await migrateToEnd(from, NAME, to.name, { sharedVolumes: [VOLUME] });
    assert.equal(result.state, 'done', JSON.stringify(result.error));
    assert.equal(await seen(to), to.name, 'the storage of the destination is what it sees');
    for (const host of [alpha, beta]) {
      await host.exec('podman', ['volume', 'exists', VOLUME]);
      assert.equal(await shell(host, `cat ${STORAGE}/whose; ls ${STORAGE}`), `${host.name}\nwhose`);
    }
  }
});

void it('is known by its label too', { timeout: 240_000 }, async () => {
  await removeAll();
  for (const host of [alpha, beta]) {
    await shell(host, `mkdir -p ${STORAGE}; echo ${host.name} >${STORAGE}/whose`);
    await makeVolume(host, ['ums.shared=true']);
  }
  await start(alpha);
  const result = await migrateToEnd(alpha, NAME, 'beta', {});
  assert.equal(result.state, 'done', JSON.stringify(result.error));
  assert.equal(await seen(beta), 'beta');
  for (const host of [alpha, beta]) await host.exec('podman', ['volume', 'exists', VOLUME]);
});
