import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { z } from 'zod';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import { containers, migrateToEnd, until } from './support/moves.ts';
import {
  engineLog,
  engineView,
  greetingFrom,
  inEngine,
  inRunc,
  moveByCommand,
  remains,
  statusOf,
  verified,
  wentOn,
  WORKLOAD,
} from './support/workload.ts';

/**
 * A program that is not Redis: many processes and threads with every kind of kernel state that a move must carry. It
 * verifies itself after each of ten moves, under either driver, and the engine must see it as one of its own.
 */
const MOVES = 10;
const MIB_PER_PROCESS = '4';
const TEST_LIMIT_MS = 600_000;
const START_LIMIT_MS = 20_000;

const lab = Lab.open();
let alpha: Host;
let beta: Host;

before(async () => {
  await lab.up();
  alpha = lab.host('alpha');
  beta = lab.host('beta');
});

async function nothingRemains(host: Host, name: string): Promise<void> {
  await until(`nothing of ${name} is left on ${host.name}`, 20_000, async () => {
    const found = await remains(host, name);
    if (found.length > 0) throw new Error(found.join('\n'));
    return true;
  });
}

void describe('kitchensink in a Podman container', { timeout: TEST_LIMIT_MS }, () => {
  const NAME = 'sink-podman';
  const VOLUME = 'sink-podman-data';
  const PORT = 7790;
  const LABELS = { 'org.example.purpose': 'carried whole', owner: 'nobody=in particular' };
  const OPTIONS = `--name ${NAME} --volume ${VOLUME}:/data --publish ${PORT}:7777 --restart on-failure:3 --env COLOUR=blue`;
  const PROGRAM = [WORKLOAD, 'run', '--bind', '0.0.0.0', '--mib', MIB_PER_PROCESS];
  const inside = inEngine('podman', NAME);

  async function removeAll(): Promise<void> {
    for (const host of [alpha, beta]) {
      await host.exec('podman', ['rm', '--force', '--time', '0', '--ignore', NAME]);
      await host.exec('podman', ['volume', 'rm', '--force', VOLUME]);
    }
  }
  before(removeAll);
  after(removeAll);

  async function start(): Promise<void> {
    const image = await alpha.importImage(WORKLOAD);
    // The destination must receive the image with the first move.
    await beta.exec('podman', ['image', 'rm', '--force', '--ignore', image]);
    await alpha.exec('podman', [
      'run',
      '--detach',
      ...OPTIONS.split(' '),
      ...Object.entries(LABELS).flatMap(([key, value]) => ['--label', `${key}=${value}`]),
      image,
      ...PROGRAM,
    ]);
    await until(`${NAME} works`, START_LIMIT_MS, async () => (await verified(alpha, inside)).ok || undefined);
  }

  void it(`verifies itself after each of ${MOVES} moves, and Podman sees it rightly on both sides`, async (t) => {
    await start();
    const kept = (await engineView(alpha, 'podman', NAME)).kept;
    assert.deepEqual(kept.restartPolicy, { Name: 'on-failure', MaximumRetryCount: 3 });
    const first = await statusOf(alpha, inside);
    let [from, to] = [alpha, beta];
    let log: string[] = [];
    for (let move = 1; move <= MOVES; move += 1, [from, to] = [to, from]) {
      const status = await statusOf(from, inside);
      const result = await moveByCommand(lab, from, NAME, to);
      const verdict = await verified(to, inside);
      wentOn(status, verdict.status);
      wentOn(first, verdict.status);

      const view = await engineView(to, 'podman', NAME);
      assert.equal(view.state.Status, 'running');
      assert.deepEqual(view.kept, kept, `what Podman knows of it after move ${move}`);
      const now = await engineLog(to, 'podman', NAME);
      assert.deepEqual(now.slice(0, log.length), log, 'the log of before is the beginning of the log of now');
      assert.ok(now[0]?.includes(first.boot_id), `the log begins with the start: ${now[0]}`);
      assert.ok(!now.some((line) => line.includes('VIOLATION')));
      log = now;

      assert.equal(await greetingFrom(lab, to.address, PORT), `kitchensink ${first.boot_id}`);
      assert.equal(await greetingFrom(lab, from.address, PORT), undefined, 'the port is free where it was');
      await nothingRemains(from, NAME);
      t.diagnostic(`move ${move}: ${result.downtime_ms} ms of downtime, ${result.total_ms} ms in all`);
    }
    await servesItsEngine(from, to, first.boot_id);
  });

  /** `podman stop`, `start`, the restart policy and `rm` work on the moved container as on any other. */
  async function servesItsEngine(host: Host, other: Host, bootId: string): Promise<void> {
    await host.exec('podman', ['stop', '--time', '10', NAME]);
    const stopped = await engineView(host, 'podman', NAME);
    assert.equal(stopped.state.Status, 'exited');
    assert.equal(stopped.state.ExitCode, 0, 'it ended at SIGTERM, by itself');

    await host.exec('podman', ['start', NAME]);
    await until('it works again', START_LIMIT_MS, async () => (await verified(host, inside)).ok || undefined);
    const again = await statusOf(host, inside);
    assert.equal(again.generation, 2, 'its volume is the one it had');
    assert.notEqual(again.boot_id, bootId);
    assert.equal(await greetingFrom(lab, host.address, PORT), `kitchensink ${again.boot_id}`);

    // It ends with a failure, so its restart policy must bring it back.
    await host.exec('podman', ['exec', NAME, 'sh', '-c', 'kill -9 $(cat /proc/1/task/1/children | cut -d" " -f1)']);
    await until('its restart policy starts it', START_LIMIT_MS, async () =>
      (await statusOf(host, inside)).generation === 3 ? true : undefined,
    );

    await host.exec('podman', ['rm', '--force', '--time', '5', NAME]);
    assert.deepEqual(await containers(host, NAME), []);
    await host.exec('podman', ['volume', 'rm', VOLUME]);
    await nothingRemains(host, NAME);
    await nothingRemains(other, NAME);
  }
});

void describe('kitchensink in a runc bundle', { timeout: TEST_LIMIT_MS }, () => {
  const NAME = 'sink-runc';
  const BUNDLE = `/srv/${NAME}`;
  const inside = inRunc(NAME);
  const stateSchema = z.object({ status: z.string(), pid: z.int(), bundle: z.string() });

  async function removeAll(): Promise<void> {
    for (const host of [alpha, beta]) {
      await host.exec('runc', ['delete', '--force', NAME]);
      await host.exec('rm', ['-rf', BUNDLE]);
    }
  }
  before(removeAll);
  after(removeAll);

  /** As a person would: `runc spec`, some changes, and a logger behind the container's output. */
  async function start(): Promise<void> {
    await alpha.exec('sh', ['-ec', `mkdir -p ${BUNDLE} && cp -a /opt/bundles/${WORKLOAD}/rootfs ${BUNDLE}/rootfs`]);
    // With what a run leaves that was killed at an unlucky moment: it must not keep the next from beginning.
    await alpha.exec('mkdir', ['-p', `${BUNDLE}/rootfs/data/directory`]);
    await alpha.exec('touch', [`${BUNDLE}/rootfs/data/directory/new`]);
    await alpha.exec('runc', ['spec', '--bundle', BUNDLE]);
    const config = z
      .looseObject({ process: z.looseObject({}), root: z.looseObject({}) })
      .parse(JSON.parse(alpha.readFile(`${BUNDLE}/config.json`)));
    config.process['terminal'] = false;
    config.process['args'] = [WORKLOAD, 'run', '--mib', MIB_PER_PROCESS];
    config.root['readonly'] = false;
    alpha.writeFile(`${BUNDLE}/config.json`, JSON.stringify(config));
    const script = `{ runc run --detach --bundle ${BUNDLE} ${NAME} </dev/null; } 2>&1 | (cat >>/var/log/${NAME}.log &)`;
    await alpha.exec('sh', ['-c', script]);
    await until(`${NAME} works`, START_LIMIT_MS, async () => (await verified(alpha, inside)).ok || undefined);
  }

  async function stateOn(host: Host): Promise<z.infer<typeof stateSchema> | undefined> {
    const { stdout, exitCode } = await host.exec('runc', ['state', NAME], { okExitCodes: [0, 1] });
    return exitCode === 0 ? stateSchema.parse(JSON.parse(stdout)) : undefined;
  }

  void it(`verifies itself after each of ${MOVES} moves, and runc sees it rightly on both sides`, async (t) => {
    await start();
    const first = await statusOf(alpha, inside);
    const config = alpha.readFile(`${BUNDLE}/config.json`);
    let [from, to] = [alpha, beta];
    for (let move = 1; move <= MOVES; move += 1, [from, to] = [to, from]) {
      const status = await statusOf(from, inside);
      const migration = await migrateToEnd(from, NAME, to.name);
      assert.equal(migration.state, 'done', JSON.stringify(migration.error));
      const verdict = await verified(to, inside);
      wentOn(status, verdict.status);
      wentOn(first, verdict.status);

      assert.equal((await stateOn(to))?.status, 'running');
      assert.equal((await stateOn(to))?.bundle, BUNDLE);
      assert.equal(to.readFile(`${BUNDLE}/config.json`), config, 'the configuration is the same to the byte');
      assert.equal(await stateOn(from), undefined, 'runc knows nothing of it where it was');
      t.diagnostic(`move ${move}: ${migration.downtime_ms} ms of downtime, ${migration.total_ms} ms in all`);
    }

    await from.exec('runc', ['kill', NAME, 'TERM']);
    await until('it ends', 10_000, async () => ((await stateOn(from))?.status === 'stopped' ? true : undefined));
    assert.equal(from.readFile(`${BUNDLE}/rootfs/data/violations`), '', 'no violation to its end');
    await from.exec('runc', ['delete', NAME]);
    await from.exec('rm', ['-rf', BUNDLE]);
    for (const host of [alpha, beta]) await nothingRemains(host, NAME);
  });
});
