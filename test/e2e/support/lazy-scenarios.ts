import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { once } from 'node:events';
import { connect } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { z } from 'zod';
import { criuVersion } from '#src/checkpoint/criu.ts';
import { type LazyPager, materialise, receiveDump, reconnectPager } from '#src/checkpoint/lazy/index.ts';
import { run } from '#src/telemetry/exec.ts';
import type { PageRange, SpaceName } from '#src/transfer/pages/model.ts';
import { Scene } from './lazy-scene.ts';

function allOk(lines: readonly string[], processes: number, expected: readonly string[]): void {
  const bad = lines.filter((line) => !line.endsWith(' ok'));
  assert.deepEqual(bad, []);
  for (let process = 0; process < processes; process += 1) {
    for (const what of expected) {
      assert.ok(lines.includes(`${process} ${what} ok`), `${process} ${what}: ${lines.join('; ')}`);
    }
  }
}

const READY = ['ready'];
const CHECKED = [...READY, 'checked'];
const CHURNED = [...READY, 'forked', 'forked-twice', 'churned'];

async function dumped(mib: number, processes: number): Promise<Scene> {
  const args = ['churn', String(mib), String(processes), '/tmp/log'];
  const scene = await Scene.open({ args, ready: processes });
  await scene.freezeAndDump();
  return scene;
}

/** Everything is in the store before the restore begins. */
async function complete(): Promise<unknown> {
  const scene = await dumped(Number(process.argv[3] ?? 128), 1);
  scene.deliverAll();
  const started = performance.now();
  const pager = await scene.start();
  const ready = performance.now();
  await pager.serve();
  const served = performance.now();
  await scene.restore({ lazy: true });
  const restored = performance.now();
  await pager.hold();
  const held = performance.now();
  await scene.signal('USR1');
  const status = await pager.finished();
  const finished = performance.now();
  allOk(await scene.logged(2), 1, CHECKED);
  return {
    start_ms: ready - started,
    serve_ms: served - ready,
    restore_ms: restored - served,
    hold_ms: held - restored,
    finish_ms: finished - held,
    status,
  };
}

/** Stands in for the agent and the source behind it: answers demands after a while and pushes in the background. */
class Supply {
  readonly #scene: Scene;
  readonly #pager: LazyPager;
  readonly rtt_ms: number;
  demands = 0;
  hints = 0;
  stopped = false;

  constructor(scene: Scene, pager: LazyPager, rtt_ms: number) {
    this.#scene = scene;
    this.#pager = pager;
    this.rtt_ms = rtt_ms;
    pager.onDemand((name, range, urgent) => {
      if (urgent) this.demands += 1;
      else this.hints += 1;
      if (urgent) setTimeout(() => this.#deliver(name, range), rtt_ms);
    });
  }

  #deliver(name: SpaceName, range: PageRange): void {
    if (this.stopped) return;
    this.#scene.deliver(name, range);
    this.#pager.final(name, range);
  }

  /** All of it, in pieces, from the end to the beginning, with a pause between them. */
  async push(pages: number, pause_ms: number): Promise<void> {
    for (const { name, ranges } of this.#scene.contents) {
      for (const { first, count } of ranges.toReversed()) {
        for (let left = count; left > 0 && !this.stopped; left -= Math.min(left, pages)) {
          const piece = Math.min(left, pages);
          this.#deliver(name, { first: first + left - piece, count: piece });
          await delay(pause_ms);
        }
      }
    }
  }
}

/** Nothing is there when it is restored; processes check and churn while their memory arrives. */
async function late(): Promise<unknown> {
  const PROCESSES = 3;
  const scene = await dumped(48, PROCESSES);
  const pager = await scene.start();
  await pager.serve();
  const supply = new Supply(scene, pager, 5);
  // Asked before there is anything to hold, it is answered when there is; other questions are not in its way.
  const held = pager.hold();
  assert.equal((await pager.status()).state, 'waiting');
  await scene.restore({ lazy: true });
  await held;
  // Who reads it does not wait for a page that is missing, but is told that there is nothing.
  const { stdout } = await run('runc', ['ps', '--format', 'json', scene.id]);
  const pids = z.array(z.int()).parse(JSON.parse(stdout));
  assert.equal(pids.length, PROCESSES);
  for (const pid of pids) {
    assert.match(readFileSync(`/proc/${pid}/cmdline`, 'utf8'), /churn/);
    assert.match(readFileSync(`/proc/${pid}/environ`, 'utf8'), /PATH=/);
  }
  await scene.signal('USR2');
  await delay(100);
  await supply.push(128, 2);
  const status = await pager.finished();
  await scene.logged(PROCESSES * 4);
  await scene.signal('USR1');
  allOk(await scene.logged(PROCESSES * 5), PROCESSES, [...CHURNED, 'checked']);
  return { demands: supply.demands, hints: supply.hints, status };
}

function pagerPid(scene: Scene): number {
  return z.object({ pid: z.int() }).parse(JSON.parse(readFileSync(join(scene.dir, 'options.json'), 'utf8'))).pid;
}

async function keepers(): Promise<number[]> {
  const { stdout } = await run('sh', ['-c', "ps -eo pid,args | grep '[k]eeper.pl' || true"]);
  return stdout.split('\n').flatMap((line) => (line === '' ? [] : [Number.parseInt(line, 10)]));
}

/** The pager is killed while processes wait: they must wait on, and must not see zeros, as long as the keeper lives. */
async function killed(): Promise<unknown> {
  const PROCESSES = 2;
  const scene = await dumped(32, PROCESSES);
  const pager = await scene.start();
  await pager.serve();
  const supply = new Supply(scene, pager, 2);
  await scene.restore({ lazy: true });
  await pager.hold();
  // They fork first, so that descriptors are at stake that restore has not made.
  await scene.signal('USR2');
  await delay(200);
  const before = await pager.status();
  assert.equal(before.state, 'serving');
  assert.ok(before.processes > PROCESSES, 'the forked ones are served too');
  const ended = assert.rejects(pager.finished(), /pager/);
  // The keeper first: its successor must hold everything that it held.
  const [keeper] = await keepers();
  assert.ok(keeper !== undefined);
  process.kill(keeper, 'SIGKILL');
  while ((await keepers()).every((pid) => pid === keeper)) await delay(5);
  await pager.hold();
  const at = performance.now();
  process.kill(pagerPid(scene), 'SIGKILL');
  await ended;
  const noticed_ms = performance.now() - at;
  supply.stopped = true;
  await delay(1000);
  assert.equal((await pager.status()).state, 'failed');
  const lines = await scene.log();
  assert.deepEqual(
    lines.filter((line) => !line.endsWith(' ok')),
    [],
    'nobody has seen wrong memory',
  );
  assert.equal(lines.length, PROCESSES, 'and nobody went on');
  // The claim that this is the keeper's doing: without it they go on, with zeros.
  await pager.stop();
  await delay(1000);
  const after = await scene.log();
  assert.ok(
    after.some((line) => line.includes('BAD')),
    after.join('; '),
  );
  return { noticed_ms, before, after };
}

/** The agent goes away and comes back; what has become final meanwhile is found in the store. */
async function agentLost(): Promise<unknown> {
  const scene = await dumped(32, 1);
  const first = await scene.start();
  await first.serve();
  const supply = new Supply(scene, first, 1);
  await scene.restore({ lazy: true });
  await first.hold();
  await scene.signal('USR1');
  await delay(100);
  supply.stopped = true;
  first.disconnect();
  await delay(50);
  const [space] = scene.contents;
  const range = space?.ranges.find((one) => one.count > 1000);
  assert.ok(space !== undefined && range !== undefined);
  scene.deliver(space.name, { first: range.first, count: 4000 });
  await delay(200);
  const pager = await reconnectPager(scene.dir);
  assert.ok(pager !== undefined);
  const between = await pager.status();
  assert.ok(between.pages + between.zero_pages >= 3900, JSON.stringify(between));
  // What it waits for is asked again.
  await new Supply(scene, pager, 1).push(256, 1);
  const status = await pager.finished();
  allOk(await scene.logged(2), 1, CHECKED);
  const later = await reconnectPager(scene.dir);
  assert.equal((await later?.status())?.state, 'finished');
  await later?.finished();
  return { between, status };
}

/** Without userfaultfd: the images become whole and are restored at once. */
async function eager(): Promise<unknown> {
  const scene = await dumped(32, 2);
  const began = performance.now();
  await materialise(scene.images, {
    read: (name, first, target) => target.set(scene.source.read(name, first, target.length / 4096)),
  });
  const materialise_ms = performance.now() - began;
  await scene.restore({ lazy: false });
  await scene.signal('USR1');
  allOk(await scene.logged(4), 2, CHECKED);
  return { materialise_ms };
}

/** A restore that goes away: the pager says so, leaves nothing once it is stopped, and can be started again. */
async function abandoned(): Promise<unknown> {
  const scene = await dumped(2, 1);
  scene.deliverAll();
  const pager = await scene.start();
  await pager.serve();
  const restore = connect(join(scene.work, 'lazy-pages.socket'));
  await once(restore, 'connect');
  restore.destroy();
  await assert.rejects(pager.finished(), /restore ended before it was finished/);
  await assert.rejects(scene.start(), /stop it first/);
  await pager.stop();
  assert.deepEqual(await keepers(), []);
  const again = await scene.start();
  await again.serve();
  await scene.restore({ lazy: true });
  await again.hold();
  await again.finished();
  await scene.signal('USR1');
  allOk(await scene.logged(2), 1, CHECKED);
  return {};
}

/** CRIU's own dump, received by the agent: the same pages as in the frozen processes' memory. */
async function received(): Promise<unknown> {
  const scene = await Scene.open({ args: ['churn', '32', '2', '/tmp/log'], ready: 2 });
  const version = await criuVersion();
  const seen = new Map<string, number>();
  const began = performance.now();
  await scene.dumpTo((stream) =>
    receiveDump(stream, version, {
      open: () => false,
      pages: (space, first, content) => {
        const pid = Number(/^process:(\d+)$/.exec(space)?.[1]);
        const pages = content.length / 4096;
        seen.set(space, (seen.get(space) ?? 0) + pages);
        assert.ok(content.equals(scene.memory(pid, first, pages)), `${space} ${first}`);
      },
      without: () => undefined,
    }),
  );
  for (const [space, pages] of seen) assert.ok(pages > 32 * 256, `${space}: ${pages}`);
  assert.equal(seen.size, 2);
  await scene.remove();
  return { received_ms: performance.now() - began };
}

export const scenarios: Record<string, () => Promise<unknown>> = {
  complete,
  late,
  killed,
  agentLost,
  eager,
  received,
  abandoned,
};
