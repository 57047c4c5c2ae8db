import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { agentRequest } from '#lab/agents.ts';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import type { Migration } from '#src/coordination/schema.ts';
import type { SourceState } from '#src/coordination/states.ts';
import {
  everyByteRight,
  isActive,
  isHeld,
  type Mosaic,
  mosaicPids,
  nothingLeft,
  removeMosaic,
  startMosaic,
  type Technique,
  TECHNIQUES,
  withTechnique,
} from './support/mosaic.ts';
import { killOn } from './support/processes.ts';
import {
  clearBreakpoint,
  ended,
  migrate,
  migration,
  reachedBreakpoint,
  setBreakpoint,
  until,
} from './support/moves.ts';

/**
 * Whatever goes wrong while memory travels, the end is the right memory, or a failure that says so and leaves at most one
 * active copy and the source's copy whole. Each case breaks something at one moment of a real migration over a link slow
 * enough for that moment to last. UMS_FAULTS=flapping chooses cases by their names, UMS_MOSAIC_SEEDS a seed.
 */
const SEED = Number(process.env['UMS_MOSAIC_SEEDS']?.split(',')[0] ?? 5);
const CHOSEN = process.env['UMS_FAULTS'];
const PEER_TIMEOUT_MS = 5000;
const AGENT = { faultInjection: true, args: ['--peer-timeout', String(PEER_TIMEOUT_MS)] };
const CASE_LIMIT_MS = 180_000;
const END_LIMIT_MS = 90_000;
const STATE_LIMIT_MS = 60_000;
const WATCH_MS = 50;
/** Slow enough for memory of this size to be under way for some seconds. */
const SLOW = '40mbit';
/** So much memory is still on its way when the link is cut, however busy this machine is: less takes two seconds. */
const CUT_MIB = 32;

/** Of the destination, as long as the service's processes are not there. */
const UNRESTORED: readonly Migration['state'][] = ['reserving', 'reserved', 'receiving', 'received', 'restoring'];
/** From about here on cold sends pages; less goes as CRIU's images. */
const PAGES_MIB = 24;

const lab = Lab.open();
const service: Mosaic = { name: 'mosaic-faults', engine: 'runc' };
let alpha: Host;
let beta: Host;

before(async () => {
  await lab.up({ agents: false });
  await lab.restartAgents(AGENT);
  alpha = lab.host('alpha');
  beta = lab.host('beta');
  await lab.setLink({ rate: SLOW });
});

after(async () => {
  await lab.heal();
  await removeMosaic(lab.hosts, service);
});

interface Fault {
  name: string;
  techniques: readonly string[];
  /** Where the source is when it happens. */
  at: SourceState;
  /** Breaks something, and mends it if that is part of the case. */
  act: (id: string) => Promise<void>;
  /** What it may end with: memory that arrives whatever happens must arrive. */
  ends: readonly Migration['state'][];
  /** Of its memory; 8 without. */
  mib?: number;
}

async function stateOf(id: string): Promise<Migration | undefined> {
  return migration(alpha, id).catch(() => undefined);
}

async function reaches(id: string, state: SourceState): Promise<void> {
  const seen = await until<Migration>(state, STATE_LIMIT_MS, async () => {
    const now = await stateOf(id);
    return now?.state === state || (now?.ended_at ?? null) !== null ? now : undefined;
  });
  assert.equal(seen.state, state, `it ended before: ${JSON.stringify(seen.error)}`);
}

/** Cuts and mends the link again and again while the migration is in that state. */
async function flap(id: string, state: SourceState, cut_ms: number, whole_ms: number, most: number): Promise<void> {
  for (let times = 0; times < most; times += 1) {
    await lab.partition('alpha', 'beta');
    await sleep(cut_ms);
    await lab.heal();
    await sleep(whole_ms);
    if ((await stateOf(id))?.state !== state) return;
  }
}

async function restartAgent(name: string): Promise<void> {
  await lab.killAgent(name);
  await sleep(300);
  await lab.startAgent(name, AGENT);
}

/** A cut longer than the service may wait for memory: it must be paused meanwhile, not served something else. */
async function longCut(): Promise<void> {
  await lab.partition('alpha', 'beta');
  await until('the service is held while its memory cannot arrive', 30_000, async () => isHeld(beta) || undefined);
  assert.ok(isHeld(alpha), 'the copy at the source stays frozen');
  await sleep(2 * PEER_TIMEOUT_MS);
  assert.ok(isHeld(beta) && isHeld(alpha), 'both still stand still');
  await lab.heal();
}

/** The destination does not hear of the choice before the link is back, and must not run its copy beside the other then. */
async function chosenWhileCut(id: string): Promise<void> {
  await lab.partition('alpha', 'beta');
  await until('the source says that it is in doubt', 30_000, async () => (await stateOf(id))?.in_doubt || undefined);
  await until('the service is held while its memory cannot arrive', 30_000, async () => isHeld(beta) || undefined);
  await agentRequest(alpha, 'POST', `/v1/migrations/${id}/recover`, { choice: 'thaw-source' });
  await ended(alpha, id, END_LIMIT_MS);
  assert.ok(isActive(alpha), 'the copy at the source runs again');
  assert.ok(isHeld(beta), 'the other one has not heard of it and stands still');
  await lab.heal();
  await until('the other one goes', 30_000, async () => (mosaicPids(beta).length === 0 ? true : undefined));
}

const LIVE = ['pre-copy', 'hybrid'];
const EARLY = ['post-copy', 'hybrid'];
const ALL: readonly string[] = TECHNIQUES;

const FAULTS: readonly Fault[] = [
  {
    name: 'link flapping during live rounds',
    techniques: LIVE,
    at: 'copying',
    act: (id) => flap(id, 'copying', 300, 700, 4),
    ends: ['done'],
  },
  {
    name: 'link flapping during the push of a frozen service',
    techniques: ['cold', 'pre-copy'],
    at: 'dumping',
    act: (id) => flap(id, 'dumping', 300, 700, 3),
    ends: ['done', 'aborted'],
  },
  {
    name: 'link flapping while the last of a frozen service arrives',
    techniques: ['cold'],
    at: 'restoring',
    mib: PAGES_MIB,
    act: (id) => flap(id, 'restoring', 300, 700, 3),
    ends: ['done', 'aborted'],
  },
  {
    name: 'pager killed while the last of a frozen service arrives',
    techniques: ['cold'],
    at: 'restoring',
    mib: PAGES_MIB,
    act: async (id) => {
      // Where a restore takes long, all of it has arrived meanwhile, and then nothing may come of the pager's death.
      await until('it is restored', 30_000, async () => {
        const { state } = await migration(beta, id);
        return UNRESTORED.includes(state) ? undefined : state;
      });
      killOn(beta, /pager\.pl/);
    },
    ends: ['done', 'aborted'],
  },
  {
    name: 'link flapping during demand fetches',
    techniques: EARLY,
    at: 'filling',
    act: (id) => flap(id, 'filling', 400, 600, 6),
    ends: ['done'],
  },
  {
    name: 'a long cut during demand fetches',
    techniques: EARLY,
    at: 'filling',
    mib: CUT_MIB,
    act: longCut,
    ends: ['done'],
  },
  {
    name: 'an operator goes back while the link is cut',
    techniques: ['post-copy'],
    at: 'filling',
    mib: CUT_MIB,
    act: chosenWhileCut,
    ends: ['aborted'],
  },
  {
    name: 'sender killed before the hand-over',
    techniques: ALL,
    at: 'copying',
    act: () => restartAgent('alpha'),
    ends: ['done', 'aborted'],
  },
  {
    name: 'receiver killed before the hand-over',
    techniques: ALL,
    at: 'dumping',
    act: () => restartAgent('beta'),
    ends: ['done', 'aborted'],
  },
  {
    name: 'sender killed during demand fetches',
    techniques: EARLY,
    at: 'filling',
    act: () => restartAgent('alpha'),
    ends: ['done'],
  },
  {
    name: 'receiver killed during demand fetches',
    techniques: EARLY,
    at: 'filling',
    act: () => restartAgent('beta'),
    ends: ['done'],
  },
  {
    name: 'criu lazy-pages killed during demand fetches',
    techniques: ['post-copy'],
    at: 'filling',
    act: async () => killOn(beta, /criu.* lazy-pages/),
    ends: ['done', 'aborted'],
  },
  {
    name: 'pager killed during demand fetches',
    techniques: EARLY,
    at: 'filling',
    act: async () => killOn(beta, /pager\.pl/),
    ends: ['done', 'aborted'],
  },
  {
    name: 'pager killed before the hand-over',
    techniques: EARLY,
    at: 'dumping',
    act: async () => killOn(beta, /pager\.pl/),
    ends: ['done', 'aborted'],
  },
  {
    name: 'receiver behind a link that becomes slow',
    techniques: ALL,
    at: 'copying',
    act: async () => {
      await lab.setLink({ rate: '25mbit' });
    },
    ends: ['done'],
  },
];

/** Two copies that both can do something are never there, at no moment. */
function watchCopies(): { stop: () => Promise<void> } {
  const end = new AbortController();
  const watcher = (async () => {
    while (!end.signal.aborted) {
      // In this order: a copy that is handed over meanwhile is seen frozen first.
      const [there, here] = [isActive(beta), isActive(alpha)];
      assert.ok(!(there && here), 'two active copies');
      await sleep(WATCH_MS);
    }
  })();
  watcher.catch(() => undefined);
  return {
    stop: async () => {
      end.abort();
      await watcher;
    },
  };
}

/** Its end: by itself, or, where it says that only an operator can go on, by the choice that it advises. */
async function endOf(id: string): Promise<Migration> {
  const seen = await until<Migration>('end or doubt', END_LIMIT_MS, async () => {
    const now = await stateOf(id);
    if (now === undefined || (now.ended_at === null && !isLost(now))) return undefined;
    return now;
  });
  if (seen.ended_at !== null) return seen;
  assert.ok(isHeld(alpha), 'the copy at the source is frozen, whole');
  assert.ok(!isActive(beta), 'the copy that lost its memory does not run');
  await agentRequest(alpha, 'POST', `/v1/migrations/${id}/recover`, { choice: 'thaw-source' });
  return ended(alpha, id, END_LIMIT_MS);
}

/** It waits for an operator because memory is lost for good, not because the link is down. */
function isLost(now: Migration): boolean {
  return (
    now.in_doubt && now.state === 'filling' && !isActive(beta) && /can no longer reach/.test(now.error?.message ?? '')
  );
}

/** Whatever became of the case, the next one finds nothing of it. */
async function clearAway(id: string): Promise<void> {
  await lab.heal();
  await lab.setLink({ rate: 'max' });
  await lab.startAgents(AGENT);
  if (id !== '') await endOf(id).catch(() => undefined);
  await removeMosaic(lab.hosts, service);
  await until('no process of it is left', 10_000, async () =>
    [alpha, beta].every((host) => mosaicPids(host).length === 0) ? true : undefined,
  );
}

async function checkEnd(end: Migration, allowed: Fault['ends']): Promise<void> {
  assert.ok(allowed.includes(end.state), `${end.state}: ${JSON.stringify(end.error)}`);
  const [home, other] = end.state === 'done' ? [beta, alpha] : [alpha, beta];
  if (end.state === 'aborted') assert.ok((end.error?.message ?? '') !== '', 'the failure says what happened');
  await until('it runs where the journal says', 20_000, async () => isActive(home) || undefined);
  assert.deepEqual(mosaicPids(other), [], `no copy is left on ${other.name}`);
  await everyByteRight(home, service);
  await nothingLeft(other, service);
}

for (const fault of FAULTS) {
  if (CHOSEN !== undefined && !fault.name.includes(CHOSEN)) continue;
  const techniques = TECHNIQUES.filter((technique: Technique) => fault.techniques.includes(technique));
  if (techniques.length === 0) continue;
  void describe(fault.name, () => {
    for (const technique of techniques) {
      void it(technique, { timeout: CASE_LIMIT_MS }, async (context) => {
        await lab.setLink({ rate: SLOW });
        await startMosaic(alpha, service, { seed: SEED, mib: fault.mib ?? 8, forks: 1, rate: 300 });
        const copies = watchCopies();
        let id = '';
        try {
          // Without rounds there is little to copy, and a service that runs early is dumped in a moment: that state may have
          // passed before anybody looks.
          const place = { role: 'source', state: fault.at, point: 'before', service: service.name } as const;
          const halts =
            (fault.at === 'copying' && !LIVE.includes(technique)) ||
            (fault.at === 'dumping' && EARLY.includes(technique));
          if (halts) await setBreakpoint(alpha, place);
          ({ id } = await migrate(alpha, service.name, 'beta', withTechnique(technique)));
          if (halts) assert.ok(await reachedBreakpoint(alpha, alpha, id, fault.at, 'before'), 'it halts');
          else await reaches(id, fault.at);
          await fault.act(id);
          if (halts) await clearBreakpoint(alpha, place);
          const end = await endOf(id);
          await checkEnd(end, fault.ends);
          context.diagnostic(`${end.state}${end.error === null ? '' : `, ${end.error.code}: ${end.error.message}`}`);
        } finally {
          await clearAway(id);
          await copies.stop();
        }
      });
    }
  });
}
