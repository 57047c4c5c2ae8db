import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import {
  answers,
  begin,
  buildFor,
  command,
  goOn,
  GRANTS,
  halt,
  inside,
  LEAST_GRANTS,
  moveBetween,
  pair,
  type Place,
  remove,
  sees,
  serviceProcesses,
  servicesIn,
  start,
  type Thread,
  threads,
} from './support/migratable.ts';
import { until } from './support/moves.ts';
import { engineLog, statusOf, verified, wentOn, WORKLOAD } from './support/workload.ts';

/** Two containers of one migratable image, under different engines, hand their service to each other by themselves. */
const TEST_LIMIT_MS = 300_000;
const START_LIMIT_MS = 20_000;
const IMAGE = 'sink';
const SERVICE = 'sink';
/** Twelve MiB in each of seven processes: more than is dumped to files before it is sent. */
const PROGRAM = [WORKLOAD, 'run', '--mib', '12', '--dir', '/srv', '--no-sysv'];
const PROGRAM_NAMES = '^ks-';
/** Two processes that count without a pause, each into a file that moves with them, and leave the processors to others. */
const COUNTERS = ['a', 'b'].map((name) => `/dev/shm/count-${name}`);
/** Where this is, it ends when it is let go on. */
const FAILS = '/fails';
const COUNTING = `renice -n 19 $$; trap '[ -e ${FAILS} ] && exit 3' CONT; count() { i=0; while :; do i=$((i+1)); echo $i 1<>$1; done; }; ${COUNTERS.map((path) => `count ${path} &`).join(' ')} while :; do wait; done`;
const COUNTING_NAMES = '^sh$';
const END_AGENT =
  'for p in /proc/[0-9]*; do [ "$(readlink $p/exe)" = /.ums/bin/node ] && kill -9 ${p#/proc/}; done; true';
/** Counting takes some microseconds a step, so this is thousands of them. */
const LOOK_AGAIN_MS = 200;
const BEFORE_COMMIT = { role: 'source', state: 'committing', point: 'before' } as const;
const COMMIT_ARRIVED = { role: 'destination', state: 'committing', point: 'before' } as const;
const FROZEN = { role: 'source', state: 'freezing', point: 'after' } as const;

const lab = Lab.open();
let alpha: Host;
let beta: Host;
let one: Place;
let other: Place;
/** Containers whose engines do not grant what is needed. */
let poor: Place;
let filtered: Place;

before(async () => {
  await lab.up({ engines: ['docker'] });
  alpha = lab.host('alpha');
  beta = lab.host('beta');
  one = { host: alpha, engine: 'podman', container: 'sink-one', port: 7540 };
  other = { host: beta, engine: 'docker', container: 'sink-other', port: 7540 };
  poor = { ...other, container: 'sink-poor', port: 7550 };
  filtered = { ...one, container: 'sink-filtered', port: 7550 };
  await remove(one, other, poor, filtered);
  const image = await alpha.importImage(WORKLOAD, 'podman');
  await buildFor([one, other], image, IMAGE, ['/srv']);
});
after(async () => {
  await remove(one, other, poor, filtered);
  for (const { host, engine } of [one, other]) await host.exec(engine, ['rmi', '--force', `localhost/${IMAGE}:latest`]);
});

/** What was restored stands exactly where the source stands, and stays there. */
async function standsWhereItStood(names: string, isSame: (there: Thread, here: Thread) => void): Promise<void> {
  const here = await threads(one, names);
  const there = await threads(other, names);
  assert.ok(there.length > 1);
  assert.deepEqual(
    there.map(({ id }) => id),
    here.map(({ id }) => id),
  );
  for (const [at, thread] of there.entries()) {
    const source = here[at];
    assert.ok(source !== undefined);
    assert.equal(`${thread.state}${source.state}`, 'TT', `thread ${thread.id}`);
    assert.equal(thread.shared, source.shared, `memory of thread ${thread.id}`);
    isSame(thread, source);
  }
  await sleep(LOOK_AGAIN_MS);
  assert.deepEqual(await threads(other, names), there, 'nothing has run there');
  assert.deepEqual(await threads(one, names), here, 'nothing has run here');
}

/** Runs a command in the receiving container, tries to move the service there, and runs another that undoes the first. */
async function cannotMove(spoil: string, mend: string): Promise<void> {
  await inside(other)(beta, ['sh', '-c', spoil]);
  const earlier = await statusOf(alpha, inside(one));
  const moved = await moveBetween(one, SERVICE, other);
  assert.equal(moved.state, 'aborted');
  assert.equal(moved.error?.code, 'UMS_E_RESTORE', JSON.stringify(moved.error));
  wentOn(earlier, (await verified(alpha, inside(one))).status);
  assert.deepEqual(await serviceProcesses(other), []);
  await inside(other)(beta, ['sh', '-c', mend]);
}

async function counts(place: Place): Promise<number[]> {
  const { stdout } = await inside(place)(place.host, ['cat', ...COUNTERS]);
  return stdout.trim().split('\n').map(Number);
}

async function goesOn(place: Place, from: readonly number[]): Promise<void> {
  await until('it counts on', START_LIMIT_MS, async () => {
    const now = await counts(place);
    return now.every((count, at) => count > (from[at] ?? Number.POSITIVE_INFINITY)) || undefined;
  });
}

/** Halts a move, and returns its id and how far the service had counted. */
async function halted(at: typeof BEFORE_COMMIT | typeof COMMIT_ARRIVED): Promise<{ id: string; counted: number[] }> {
  const place = at.role === 'source' ? one : other;
  await halt(place, at);
  const id = await begin(one, SERVICE, other);
  await sees(place, id, { state: at.state });
  return { id, counted: await counts(one) };
}

void describe('a service of seven processes in migratable containers', { timeout: TEST_LIMIT_MS }, () => {
  before(async () => {
    await remove(one, other);
    await Promise.all([
      start(one, IMAGE, { args: PROGRAM, grants: LEAST_GRANTS }),
      start(other, IMAGE, { waits: true, args: PROGRAM, grants: GRANTS }),
    ]);
    await until('it works', START_LIMIT_MS, async () => (await verified(alpha, inside(one))).ok || undefined);
    await pair(one, other);
  });

  void it('moves from Podman to Docker and back, under its own process ids, and runs in one place at a time', async (t) => {
    const first = await statusOf(alpha, inside(one));
    const ids = await serviceProcesses(one);
    assert.ok(ids.length >= 7, ids.join(', '));
    const [granted] = await threads(one, PROGRAM_NAMES);
    await halt(one, BEFORE_COMMIT);
    const id = await begin(one, SERVICE, other);
    await sees(one, id, { state: 'committing' });
    await standsWhereItStood(PROGRAM_NAMES, (there) => {
      assert.equal(there.capabilities, granted?.capabilities, 'Docker grants more; the service has what it had');
    });
    await goOn(one, BEFORE_COMMIT);
    const away = await sees(one, id, {});
    assert.equal(away.state, 'done', JSON.stringify(away.error));
    assert.equal(away.approach, 'service-level');
    const there = await verified(beta, inside(other));
    wentOn(first, there.status);
    assert.deepEqual(await serviceProcesses(other), ids);
    assert.deepEqual(await serviceProcesses(one), []);

    const back = await moveBetween(other, SERVICE, one);
    assert.equal(back.state, 'done', JSON.stringify(back.error));
    wentOn(there.status, (await verified(alpha, inside(one))).status);
    assert.deepEqual(await serviceProcesses(one), ids);
    assert.deepEqual(await serviceProcesses(other), []);
    t.diagnostic(`back: ${back.downtime_ms} ms of downtime, ${back.total_ms} ms in all`);
  });

  void it('goes on at its source when it cannot be restored', async () => {
    // What its processes were started from is not there: CRIU finds out in the middle of the restore.
    await cannotMove(`mv /bin/${WORKLOAD} /bin/away`, `mv /bin/away /bin/${WORKLOAD}`);
  });

  void it('goes on at its source when CRIU is killed, and the init kills what that had made', async () => {
    const criu = '/.ums/bin/criu';
    const killed = `#!/.ums/bin/sh\ncase $1 in restore) sleep 300 & kill -9 $$ ;; esac\nexec ${criu}.kept "$@"\n`;
    const spoil = `mv ${criu} ${criu}.kept && printf '${killed}' >${criu} && chmod 755 ${criu}`;
    await cannotMove(spoil, `mv ${criu}.kept ${criu}`);
    assert.deepEqual(await threads(other, '^sleep$'), []);
  });

  void it('moves only cold', async () => {
    const answer = await command(one, ['migrate', SERVICE, '--to', other.container, '--technique', 'pre-copy']);
    assert.match(JSON.stringify(answer), /UMS_E_TECHNIQUE.*pre-copy is not possible here/);
  });

  void it('is for its engine what it was: output, signals and exit status', async () => {
    const moved = await moveBetween(one, SERVICE, other);
    assert.equal(moved.state, 'done', JSON.stringify(moved.error));
    await verified(beta, inside(other));
    await beta.exec('docker', ['stop', '--time', '10', other.container]);
    const { stdout } = await beta.exec('docker', ['inspect', '--format', '{{.State.ExitCode}}', other.container]);
    assert.equal(stdout.trim(), '0', (await engineLog(beta, 'docker', other.container)).join('\n'));
    // Begun by its engine again, it has the service that has come to it, from its files.
    await beta.exec('docker', ['start', other.container]);
    await until('it works', START_LIMIT_MS, async () => (await verified(beta, inside(other))).ok || undefined);
    // The one that gave its service away does not begin it anew when its engine starts it again.
    await alpha.exec('podman', ['restart', '--time', '0', one.container]);
    await answers(one);
    assert.deepEqual(await serviceProcesses(one), []);
  });
});

void describe('a service that counts, when something ends while it moves,', { timeout: TEST_LIMIT_MS }, () => {
  before(async () => {
    await remove(one, other);
    const options = { args: ['sh', '-c', COUNTING] };
    await Promise.all([start(one, IMAGE, options), start(other, IMAGE, { ...options, waits: true })]);
    await pair(one, other);
    await until('it counts', START_LIMIT_MS, async () => (await counts(one)).length === 2 || undefined);
  });

  void it('the destination, init and agent, before the commit, and the agent at the source: that waits for its word, and goes on with its memory', async () => {
    const { id, counted } = await halted(BEFORE_COMMIT);
    await standsWhereItStood(COUNTING_NAMES, (there, here) => {
      assert.match(there.sp, /^0x/);
      assert.equal(there.sp, here.sp, `stack of thread ${there.id}`);
      // The first one waits for the others in a system call, which is begun anew when it goes on.
      const before_bytes = Math.abs(Number(here.pc) - Number(there.pc));
      assert.ok(before_bytes === 0 || before_bytes === 2, `instruction of thread ${there.id}: ${here.pc}, ${there.pc}`);
    });
    assert.deepEqual(await counts(other), counted);
    await beta.exec('docker', ['kill', other.container]);
    // The source's agent, too, which goes on by its journal, without a halt.
    await inside(one)(alpha, ['sh', '-c', END_AGENT]);
    await answers(one);
    await sees(one, id, { in_doubt: true });
    assert.deepEqual(await counts(one), counted, 'it stands still while nobody knows');
    await beta.exec('docker', ['start', other.container]);
    const { state, error } = await sees(one, id, {});
    assert.equal(state, 'aborted');
    assert.equal(error?.code, 'UMS_E_HOST_LOST');
    await goesOn(one, counted);
    assert.deepEqual(await threads(other, COUNTING_NAMES), []);
  });

  void it('itself, as soon as it runs there: it goes on at its source', async () => {
    await inside(other)(beta, ['touch', FAILS]);
    const counted = await counts(one);
    const moved = await moveBetween(one, SERVICE, other);
    assert.equal(moved.state, 'aborted');
    assert.equal(moved.error?.code, 'UMS_E_UNHEALTHY', JSON.stringify(moved.error));
    await goesOn(one, counted);
    assert.deepEqual(await threads(other, COUNTING_NAMES), []);
    await inside(other)(beta, ['rm', FAILS]);
  });

  void it('the source, init and agent, in the middle of the commit: it begins nothing anew, and the destination has the service', async () => {
    const { id, counted } = await halted(COMMIT_ARRIVED);
    await alpha.exec('podman', ['kill', one.container]);
    await alpha.exec('podman', ['start', one.container]);
    await answers(one);
    assert.deepEqual(await threads(one, COUNTING_NAMES), []);
    assert.ok((await threads(other, COUNTING_NAMES)).every(({ state }) => state === 'T'));
    await goOn(other, COMMIT_ARRIVED);
    assert.equal((await sees(one, id, {})).state, 'done');
    await goesOn(other, counted);
    assert.deepEqual(await threads(one, COUNTING_NAMES), []);
  });

  void it('the source, init and agent, before its memory has arrived: the service begins anew there, from its files', async () => {
    // Back, from where the test before has left it.
    await halt(other, FROZEN);
    const id = await begin(other, SERVICE, one);
    await until('it stands still', START_LIMIT_MS, async () => {
      const all = await threads(other, COUNTING_NAMES);
      return all.every(({ state }) => state === 'T') || undefined;
    });
    await beta.exec('docker', ['kill', other.container]);
    await beta.exec('docker', ['start', other.container]);
    await answers(other);
    const { state, error } = await sees(other, id, {});
    assert.equal(state, 'aborted');
    assert.equal(error?.code, 'UMS_E_HOST_LOST');
    await goesOn(other, [0, 0]);
    await until('nothing is left of it', START_LIMIT_MS, async () => (await servicesIn(one)) === 0 || undefined);
  });

  void it('is refused where it cannot be moved, and goes on', async () => {
    const counted = await counts(other);
    // It has begun anew there, with what Docker grants and Podman does not.
    const capabilities = await command(other, ['migrate', SERVICE, '--to', one.container]);
    assert.match(JSON.stringify(capabilities), /UMS_E_PREFLIGHT.*lacks NET_RAW, MKNOD, AUDIT_WRITE/);
    // A destination without the one that CRIU needs, and a source with a seccomp filter.
    await Promise.all([
      start(poor, IMAGE, { waits: true, grants: ['--security-opt', 'seccomp=unconfined'] }),
      start(filtered, IMAGE, { args: ['sleep', '1000'], grants: ['--cap-add', 'CHECKPOINT_RESTORE'] }),
    ]);
    await pair(other, poor);
    await pair(filtered, poor);
    const destination = await command(other, ['migrate', SERVICE, '--to', poor.container]);
    assert.match(JSON.stringify(destination), /no usable init.*lacks CAP_CHECKPOINT_RESTORE/);
    const source = await command(filtered, ['migrate', SERVICE, '--to', poor.container]);
    assert.match(JSON.stringify(source), /UMS_E_PREREQUISITE.*seccomp filter/);
    await goesOn(other, counted);
    assert.equal((await threads(filtered, '^sleep$')).length, 1);
  });
});
