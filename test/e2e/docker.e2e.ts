import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { agentRequest } from '#lab/agents.ts';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import { migrateToEnd, until } from './support/moves.ts';
import {
  engineLog,
  engineView,
  greetingFrom,
  inEngine,
  lines,
  moveByCommand,
  remainsInDocker,
  statusOf,
  verified,
  wentOn,
  WORKLOAD,
} from './support/workload.ts';

/** Docker's own containers, by every technique, as Docker itself sees them before and after. */
const TEST_LIMIT_MS = 300_000;
const START_LIMIT_MS = 20_000;
const MIB = 1024 * 1024;

const lab = Lab.open();
let alpha: Host;
let beta: Host;

before(async () => {
  await lab.up({ engines: ['docker'] });
  alpha = lab.host('alpha');
  beta = lab.host('beta');
});

async function nothingRemains(host: Host, name: string): Promise<void> {
  await until(`nothing of ${name} is left on ${host.name}`, START_LIMIT_MS, async () => {
    const found = await remainsInDocker(host, name);
    if (found.length > 0) throw new Error(found.join('\n'));
    return true;
  });
}

void describe('kitchensink in a Docker container', { timeout: TEST_LIMIT_MS }, () => {
  const NAME = 'sink-docker';
  const VOLUME = 'sink-docker-data';
  const PORT = 7791;
  const OPTIONS = `--name ${NAME} --volume ${VOLUME}:/data --publish ${PORT}:7777 --restart on-failure:3 --env COLOUR=blue`;
  const PROGRAM = [WORKLOAD, 'run', '--bind', '0.0.0.0', '--mib', '4'];
  const inside = inEngine('docker', NAME);

  async function removeAll(): Promise<void> {
    for (const host of [alpha, beta]) {
      await host.exec('sh', ['-c', `docker rm --force ${NAME}; docker volume rm --force ${VOLUME}`]);
    }
  }
  before(removeAll);
  after(removeAll);

  void it('verifies itself after a move by each technique, and Docker sees it rightly on both sides', async (t) => {
    const image = await alpha.importImage(WORKLOAD, 'docker');
    // The destination must receive the image with the first move.
    await beta.exec('sh', ['-c', `docker image rm --force ${image} || true`]);
    const words = [
      'run',
      '--detach',
      ...OPTIONS.split(' '),
      '--label',
      'owner=nobody=in particular',
      image,
      ...PROGRAM,
    ];
    await alpha.exec('docker', words);
    await until(`${NAME} works`, START_LIMIT_MS, async () => (await verified(alpha, inside)).ok || undefined);
    const { kept } = await engineView(alpha, 'docker', NAME);
    const first = await statusOf(alpha, inside);
    let [from, to] = [alpha, beta];
    let log: string[] = [];
    for (const technique of ['cold', 'pre-copy', 'post-copy', 'hybrid'] as const) {
      const before = await statusOf(from, inside);
      const result = await migrateToEnd(from, NAME, to.name, { technique });
      assert.equal(result.state, 'done', JSON.stringify(result.error));
      const verdict = await verified(to, inside);
      wentOn(before, verdict.status);
      const view = await engineView(to, 'docker', NAME);
      assert.equal(view.state.Status, 'running');
      assert.deepEqual(view.kept, kept, `what Docker knows of it after ${technique}`);
      const now = await engineLog(to, 'docker', NAME);
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
    await nothingRemains(from, NAME);
  });

  /** `docker stop`, `start`, the restart policy and `rm` work on the moved container as on any other. */
  async function servesItsEngine(host: Host, bootId: string): Promise<void> {
    await host.exec('docker', ['stop', '--time', '10', NAME]);
    const stopped = await engineView(host, 'docker', NAME);
    assert.equal(stopped.state.Status, 'exited');
    assert.equal(stopped.state.ExitCode, 0, 'it ended at SIGTERM, by itself');
    await host.exec('docker', ['start', NAME]);
    await until('it works again', START_LIMIT_MS, async () => (await verified(host, inside)).ok || undefined);
    const again = await statusOf(host, inside);
    assert.equal(again.generation, 2, 'its volume is the one it had');
    assert.notEqual(again.boot_id, bootId);
    // It ends with a failure, so its restart policy must bring it back.
    await host.exec('docker', ['exec', NAME, 'sh', '-c', 'kill -9 $(cat /proc/1/task/1/children | cut -d" " -f1)']);
    await until('its restart policy starts it', START_LIMIT_MS, async () =>
      (await inside(host, [WORKLOAD, 'status'])).stdout.includes('"generation":3') ? true : undefined,
    );
    await host.exec('docker', ['rm', '--force', NAME]);
    await host.exec('docker', ['volume', 'rm', VOLUME]);
    await nothingRemains(host, NAME);
  }
});

/** Adds a layer with a file of random bytes, which no compression makes smaller. */
async function addLayer(from: string, to: string, file: string, mib: number): Promise<void> {
  const script = `c=$(docker create ${from} x); head -c ${mib * MIB} /dev/urandom >/tmp/${file}
    docker cp /tmp/${file} $c:/${file}; docker commit $c ${to}; docker rm $c; rm /tmp/${file}`;
  await alpha.exec('sh', ['-ec', script], { timeout_ms: 60_000 });
}

void describe('images in Docker', { timeout: TEST_LIMIT_MS }, () => {
  const NAME = 'layered-docker';

  async function removeAll(): Promise<void> {
    const images = 'layered:base layered:own layered:before';
    for (const host of [alpha, beta]) {
      await host.exec('sh', ['-c', `docker rm --force ${NAME}; docker image rm --force ${images}; true`]);
    }
  }
  before(removeAll);
  after(removeAll);

  async function move(): Promise<number> {
    await alpha.exec('docker', ['run', '--detach', '--name', NAME, 'layered:own', 'memhog', '4', '100', '/tmp/ticks']);
    const result = await migrateToEnd(alpha, NAME, 'beta', {});
    assert.equal(result.state, 'done', JSON.stringify(result.error));
    await beta.exec('docker', ['rm', '--force', NAME]);
    return result.bytes_on_wire;
  }

  void it('only the layers that are missing travel', async (t) => {
    await addLayer(await alpha.importImage('memhog', 'docker'), 'layered:base', 'base', 40);
    await addLayer('layered:base', 'layered:own', 'own', 2);
    const first = await move();
    assert.ok(first > 42 * MIB, 'all layers travelled');
    // Another image on the same base, which beta has now as a part of an image with a name of its own.
    await beta.exec('docker', ['tag', 'layered:own', 'layered:before']);
    for (const host of [alpha, beta]) await host.exec('docker', ['rmi', '--force', 'layered:own']);
    await addLayer('layered:base', 'layered:own', 'own', 3);
    const second = await move();
    t.diagnostic(`${first} bytes on the wire for all layers, ${second} for the last one`);
    assert.ok(second < 20 * MIB, `${second} bytes on the wire`);
  });
});

void describe('a task of a service of Docker Swarm', { timeout: TEST_LIMIT_MS }, () => {
  after(() => alpha.exec('sh', ['-c', 'docker service rm web; docker swarm leave --force; true']));

  void it('is refused, because the swarm would make another one in its place, and runs on', async () => {
    const name = await alpha.importImage(WORKLOAD, 'docker');
    // By its id: a swarm would ask a registry for a name, and wait for the answer.
    const [image = ''] = await lines(alpha, 'docker', ['image', 'inspect', '--format', '{{.Id}}', name]);
    await alpha.exec('docker', ['swarm', 'init', '--advertise-addr', alpha.address]);
    const options = ['--detach', '--name', 'web', '--network', 'host', '--no-resolve-image'];
    await alpha.exec('docker', ['service', 'create', ...options, image, 'sleep', '1000']);
    const tasks = ['ps', '--filter', 'label=com.docker.swarm.service.name=web', '--format', '{{.Names}}'];
    const task = await until('its task runs', START_LIMIT_MS, async () => (await lines(alpha, 'docker', tasks))[0]);
    await assert.rejects(
      migrateToEnd(alpha, task, 'beta'),
      /service web of Docker Swarm, which would make another one/,
    );
    assert.deepEqual(await lines(alpha, 'docker', tasks), [task]);
  });

  void it('is found, stopped and started as the service that it is, and is not to be moved as one of several', async () => {
    const service = '/v1/services/swarm:web';
    const tasks = ['ps', '--quiet', '--filter', 'label=com.docker.swarm.service.name=web'];
    // What engines there are is asked every ten seconds, and the swarm has just been made.
    await until('it can be stopped', START_LIMIT_MS, async () => {
      await agentRequest(alpha, 'POST', `${service}/stop`, {});
      return true;
    });
    assert.deepEqual(await lines(alpha, 'docker', tasks), []);
    await agentRequest(alpha, 'POST', `${service}/start`, {});
    assert.equal((await lines(alpha, 'docker', tasks)).length, 1);
    const { state, error } = await migrateToEnd(alpha, 'swarm:web', 'beta');
    assert.deepEqual([state, error?.code], ['aborted', 'UMS_E_ENGINE_MISSING'], JSON.stringify(error));
    await alpha.exec('docker', ['service', 'scale', '--detach', 'web=2']);
    await assert.rejects(
      migrateToEnd(alpha, 'swarm:web', 'beta'),
      /web has 2 tasks, and only a service of one can move/,
    );
  });
});
