import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { freshMove } from '#bench/cases.ts';
import { removePulse } from '#bench/pulse/service.ts';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import { PATIENCE } from '#lab/patience.ts';
import { ended, migrate, migration, nothingStaged, until } from './support/moves.ts';
import {
  ask,
  ENGINES,
  everyByteRight,
  isActive,
  type Mosaic,
  type MosaicRegion,
  nothingLeft,
  PAGE_BYTES,
  peek,
  poke,
  regionsOf,
  removeMosaic,
  standStill,
  startMosaic,
  type Technique,
  TECHNIQUES,
  wentOn,
  withTechnique,
} from './support/mosaic.ts';

/**
 * Every byte of a random address space is the same before and after a move, for every engine, technique and way to track
 * changed memory, while the program goes on changing it. The techniques come from the schema, so that a new one cannot
 * be forgotten. Each engine has a seed of its own unless UMS_MOSAIC_SEEDS=3,4 gives all of them these;
 * UMS_MOSAIC_TECHNIQUES, UMS_MOSAIC_ENGINES and UMS_MOSAIC_TRACKERS choose cases; UMS_MOSAIC_ONE_WAY=1 leaves out the way
 * back.
 */
const chosen = (name: string): string[] | undefined => process.env[`UMS_MOSAIC_${name}`]?.split(',');
const SEEDS = chosen('SEEDS')?.map(Number);
/** How the agents find out what was written, where more than one way exists on this kernel. */
const TRACKERS = (chosen('TRACKERS') ?? ['written', 'hash']).filter((tracker) => tracker !== '');
const MOVE_LIMIT_MS = 120_000;
const MOVES_MAX = 5;
/** Where everything is slow, so are answers. */
const AGENT_ARGS = PATIENCE > 1 ? ['--peer-timeout', String(15_000 * PATIENCE)] : [];

const lab = Lab.open();
let alpha: Host;
let beta: Host;

before(async () => {
  await lab.up({ agents: false });
  alpha = lab.host('alpha');
  beta = lab.host('beta');
});

/** Agents that track changes in one way only. */
async function agentsWith(tracker: string): Promise<void> {
  await lab.restartAgents({ env: { UMS_TRACKER: tracker }, args: AGENT_ARGS });
}

/** Only these send pages while the service runs, so only for these it matters how changes are found. */
const LIVE: readonly string[] = ['pre-copy', 'hybrid'];

function tracks(technique: Technique, tracker: string): boolean {
  return LIVE.includes(technique) || tracker === TRACKERS[0];
}

async function moveAndCheck(service: Mosaic, from: Host, to: Host, technique: Technique): Promise<string> {
  const first = await everyByteRight(from, service);
  const { id } = await migrate(from, service.name, to.name, withTechnique(technique));
  // Asked as soon as it runs: with memory still arriving, every page must be right at its first touch.
  const early = await until(`${service.name} runs on ${to.name}`, MOVE_LIMIT_MS, async () => {
    const now = await migration(from, id);
    if (now.ended_at !== null && now.state !== 'done') return { failed: JSON.stringify(now.error) };
    if (now.ended_at === null && (isActive(from) || !isActive(to))) return undefined;
    return await ask(to, service, 'verify').catch(() => undefined);
  });
  assert.ok(!('failed' in early), 'failed' in early ? early.failed : '');
  assert.ok(early.ok, `right after it was resumed: ${early.first}`);
  const end = await ended(from, id, MOVE_LIMIT_MS);
  assert.equal(end.state, 'done', JSON.stringify(end.error));
  const last = await everyByteRight(to, service);
  wentOn(first, last);
  if (LIVE.includes(technique)) assert.ok((end.memory?.rounds ?? 0) > 0, 'memory was copied while it ran');
  await nothingLeft(from, service);
  for (const host of [from, to]) await nothingStaged(host);
  return `${end.downtime_ms} ms of downtime, ${end.total_ms} ms in all, ${end.bytes_on_wire} bytes; ${JSON.stringify(end.memory)}`;
}

function cases(tracker: string): { service: Mosaic; technique: Technique; seed: number }[] {
  const engines = ENGINES.filter((engine) => chosen('ENGINES')?.includes(engine) ?? true);
  const techniques = TECHNIQUES.filter((technique) => chosen('TECHNIQUES')?.includes(technique) ?? true);
  return techniques
    .filter((technique) => tracks(technique, tracker))
    .flatMap((technique) => engines.map((engine) => ({ technique, engine })))
    .flatMap(({ technique, engine }) =>
      (SEEDS ?? [1 + ENGINES.indexOf(engine)]).map((seed) => ({
        technique,
        seed,
        service: { engine, name: `mosaic-${technique}-${engine}-${seed}` },
      })),
    );
}

for (const tracker of TRACKERS) {
  const list = cases(tracker);
  if (list.length === 0) continue;
  void describe(`every byte after a move, changes tracked by ${tracker}`, () => {
    before(() => agentsWith(tracker));
    for (const { service, technique, seed } of list) {
      void it(`${technique}, ${service.engine}, seed ${seed}`, {
        timeout: 2 * MOVE_LIMIT_MS * PATIENCE,
      }, async (context) => {
        try {
          await startMosaic(alpha, service, { seed });
          context.diagnostic(`there: ${await moveAndCheck(service, alpha, beta, technique)}`);
          if (process.env['UMS_MOSAIC_ONE_WAY'] === '1') return;
          // The way back meets what the first move left in both hosts' memories of it.
          context.diagnostic(`back: ${await moveAndCheck(service, beta, alpha, technique)}`);
        } finally {
          await removeMosaic([alpha, beta], service);
        }
      });
    }
  });
}

/** What it leaves out, the destination gets when the service runs there. */
void describe('hybrid whose first round is cut short', () => {
  before(() => agentsWith(TRACKERS[0] ?? 'written'));
  after(() => removePulse(lab));

  void it('brings what was left out', { timeout: 2 * MOVE_LIMIT_MS * PATIENCE }, async (context) => {
    const words = ['--rate-limit', '150MB/s', '--max-rounds', '1'];
    const service = { engine: 'runc', technique: 'hybrid', mib: 512, dirty_kb_s: 20_000, words } as const;
    // Where both sides are ready for the freeze only when the round is over, nothing is left out, and that is right too.
    for (let moves = 1; ; moves += 1) {
      const { rounds, memory_ok, continuous } = await freshMove(lab, service, { signal: new AbortController().signal });
      assert.ok(memory_ok, 'its memory is what it must be');
      assert.ok(continuous);
      const left = rounds.map((round) => round.left_bytes);
      context.diagnostic(`left out of each round: ${left.join(', ')} bytes`);
      if ((left[0] ?? 0) > 0) return;
      assert.ok(moves < MOVES_MAX, 'a round was cut short');
    }
  });
});

/** The address of a page that is not empty and as it is asked for. */
function pageHolding({ pid, base, pages }: MosaicRegion, like: (page: Buffer) => boolean): number {
  const found = Array.from({ length: pages }, (_, page) => base + page * PAGE_BYTES).find((address) => {
    const page = peek(pid, address);
    return !page.equals(Buffer.alloc(PAGE_BYTES)) && like(page);
  });
  assert.ok(found !== undefined);
  return found;
}

function pageAt(content: Buffer | undefined, page: number): Buffer {
  return content?.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES) ?? Buffer.alloc(0);
}

/** The tester is tested: whatever is altered behind its back must be reported, at its address. */
void describe('mosaic notices wrong memory', () => {
  const service: Mosaic = { name: 'mosaic-tested', engine: 'runc' };
  const KINDS = 13;
  before(async () => {
    // Without structural changes every region stays where it is.
    await startMosaic(alpha, service, { seed: 7, mib: 8, churn: 0 });
  });
  after(() => removeMosaic([alpha, beta], service));

  async function reported(says: RegExp, address?: number): Promise<void> {
    const { ok, first } = await ask(alpha, service, 'verify');
    assert.equal(ok, false, 'it is reported');
    assert.match(first, says);
    if (address !== undefined)
      assert.ok(first.includes(`0x${address.toString(16)}`), `${address.toString(16)}: ${first}`);
  }

  async function restore(pid: number, address: number, content: Buffer): Promise<void> {
    poke(pid, address, content);
    await ask(alpha, service, 'forgive');
  }

  void it('reports one altered bit in each kind of memory', async () => {
    await standStill(alpha, service);
    await everyByteRight(alpha, service);
    const processes = await Promise.all([0, 1, 2].map((index) => regionsOf(alpha, service, index)));
    const seen = new Set<string>();
    for (const [at, { kind }] of (processes[0] ?? []).entries()) {
      const region = processes[seen.size % processes.length]?.[at];
      if (region === undefined || kind === 'model' || seen.has(kind)) continue;
      seen.add(kind);
      const address = region.written === 0 ? region.untouched : region.written;
      const page = peek(region.pid, address);
      poke(region.pid, address + 3001, Buffer.from([(page[3001] ?? 0) ^ 0x10]));
      await reported(new RegExp(`${kind} region`), address + 3000);
      await restore(region.pid, address, page);
    }
    assert.equal(seen.size, KINDS, [...seen].join(', '));
    await everyByteRight(alpha, service);
  });

  void it('reports a page of zeroes, a page of another place and a page that should be empty', async () => {
    const plain = (await regionsOf(alpha, service, 1)).filter(({ kind }) => kind === 'plain');
    const [one, other] = plain.filter(({ written, untouched }) => written !== 0 && untouched !== 0);
    assert.ok(one !== undefined && other !== undefined);
    const address = pageHolding(one, () => true);
    const mine = peek(one.pid, address);
    const theirs = peek(
      other.pid,
      pageHolding(other, (page) => !page.equals(mine)),
    );
    poke(one.pid, address, Buffer.alloc(PAGE_BYTES));
    await reported(/the page holds zeroes/);
    await restore(one.pid, address, mine);
    poke(one.pid, address, theirs);
    await reported(/the page holds/);
    await restore(one.pid, address, mine);
    poke(one.pid, one.untouched, mine);
    await reported(/not written; the page holds page \d+ of the same region/, one.untouched);
    await restore(one.pid, one.untouched, Buffer.alloc(PAGE_BYTES));
    await everyByteRight(alpha, service);
  });

  void it('reports a page that stayed behind, and a whole process that did, although it agrees with itself', async () => {
    const regions = await regionsOf(alpha, service, 2);
    const kept = regions.filter(({ kind }) => kind === 'plain' || kind === 'model');
    await alpha.exec('runc', ['pause', service.name]);
    const then = kept.map(({ pid, base, pages }) => peek(pid, base, pages * PAGE_BYTES));
    await alpha.exec('runc', ['resume', service.name]);
    const { writes } = await ask(alpha, service, 'rate', '4000');
    await until('every page is written', 30_000, async () =>
      (await ask(alpha, service, 'status')).writes > writes + 20_000 ? true : undefined,
    );
    await standStill(alpha, service);
    await everyByteRight(alpha, service);

    const [plain] = kept;
    assert.ok(plain !== undefined);
    const now = peek(plain.pid, plain.base, plain.pages * PAGE_BYTES);
    const stale = Array.from({ length: plain.pages }, (_, at) => at).find(
      (at) => !pageAt(then[0], at).equals(pageAt(now, at)),
    );
    assert.ok(stale !== undefined, 'a page was rewritten');
    poke(plain.pid, plain.base + stale * PAGE_BYTES, pageAt(then[0], stale));
    await reported(/the page holds/);
    await restore(plain.pid, plain.base + stale * PAGE_BYTES, pageAt(now, stale));
    await everyByteRight(alpha, service);

    await alpha.exec('runc', ['pause', service.name]);
    for (const [at, { pid, base }] of kept.entries()) poke(pid, base, then[at] ?? Buffer.alloc(0));
    await alpha.exec('runc', ['resume', service.name]);
    await reported(/model: memory stands at step/);
  });
});
