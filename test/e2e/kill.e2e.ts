import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { z } from 'zod';
import { agentRequest } from '#lab/agents.ts';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import { type Migration, type Technique, techniqueSchema } from '#src/coordination/schema.ts';
import {
  DESTINATION_STATES,
  isFinal,
  type MigrationState,
  type Role,
  SOURCE_STATES,
} from '#src/coordination/states.ts';
import {
  checksumOk,
  clearBreakpoint,
  clearBreakpoints,
  containers,
  ended,
  lastTick,
  migrate,
  migration,
  nothingStaged,
  type Place,
  reachedBreakpoint,
  setBreakpoint,
  startMemhog,
  until,
} from './support/moves.ts';

/**
 * For every state of the saga, on both sides: the step has acted but its end is not written yet; now an agent is killed,
 * or a whole host, or the link is cut. Afterwards there must be exactly one healthy copy with its state. The cases come
 * from the state table, so that a new state cannot be forgotten. One migration is halted at each state, all at the same
 * time, so each fault happens once and meets all of them.
 * Cold moves memory as CRIU's images; hybrid runs early and moves it on the page path. By default it meets only the fault at
 * which it differs most: a source that takes memory with it which was still to follow. UMS_KILL_TECHNIQUES=hybrid or others
 * meet all. UMS_KILL_POINTS=before,after runs both ends of each step; UMS_KILL_FAULTS and UMS_KILL_STATES choose some.
 */
const FAULTS = ['source-agent', 'destination-agent', 'partition', 'source-host', 'destination-host'] as const;
type Fault = (typeof FAULTS)[number];

const ASKED_TECHNIQUES = process.env['UMS_KILL_TECHNIQUES']?.split(',');
const TECHNIQUES = z.array(techniqueSchema).parse(ASKED_TECHNIQUES ?? ['cold', 'hybrid']);
const POINTS = (process.env['UMS_KILL_POINTS'] ?? 'after').split(',');
const CHOSEN_FAULTS = process.env['UMS_KILL_FAULTS']?.split(',');
const CHOSEN_STATES = process.env['UMS_KILL_STATES']?.split(',');

/** States that only a migration which goes back passes through: there, it is made to go back by cancelling it. */
const GOING_BACK: readonly MigrationState[] = ['aborting'];
/** The states of a move from capsule to capsule, which no ordinary container passes through (capsule-move.e2e.ts). */
const OF_CAPSULES: readonly MigrationState[] = ['nested'];

interface Case {
  role: Role;
  state: MigrationState;
  point: string;
  service: string;
  technique: Technique;
}

/** A case whose migration is halted where it shall be. */
interface Halted {
  id: string;
  /** The last tick that the service logged before the fault. */
  tick: number;
}

function cases(fault: Fault, technique: Technique): Case[] {
  const list: Case[] = [];
  const sides: [Role, readonly MigrationState[]][] = [
    ['source', SOURCE_STATES],
    ['destination', DESTINATION_STATES],
  ];
  for (const [role, states] of sides) {
    for (const state of states) {
      if (isFinal(state) || OF_CAPSULES.includes(state)) continue;
      if (!(CHOSEN_STATES?.includes(`${role}:${state}`) ?? true)) continue;
      for (const point of POINTS) {
        list.push({ role, state, point, technique, service: `${technique}-${fault}-${role}-${state}-${point}` });
      }
    }
  }
  return list;
}

const lab = Lab.open();
const PEER_TIMEOUT_MS = 2000;
const AGENT = { faultInjection: true, args: ['--peer-timeout', String(PEER_TIMEOUT_MS)] };
/** Migrations that are brought to their breakpoints at the same time. */
const WIDTH = 4;

let alpha: Host;
let beta: Host;

before(async () => {
  await lab.up({ agents: false });
  await lab.restartAgents(AGENT);
  alpha = lab.host('alpha');
  beta = lab.host('beta');
});

after(async () => {
  await lab.heal();
  await lab.restartAgents();
});

async function eachOf<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
  const queue = [...items];
  const worker = async () => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift()) await work(item);
  };
  await Promise.all(Array.from({ length: WIDTH }, worker));
}

/** Brings one migration to its breakpoint and leaves it halted there. */
async function halt(one: Case): Promise<Halted> {
  await startMemhog(alpha, one.service, 4);
  const watched = one.role === 'source' ? alpha : beta;
  await setBreakpoint(watched, placeOf(one));
  const beforeRestore = { role: 'source', state: 'restoring', point: 'before', service: one.service } as const;
  const goesBack = GOING_BACK.includes(one.state);
  if (goesBack) await setBreakpoint(alpha, beforeRestore);
  const { id } = await migrate(alpha, one.service, 'beta', { technique: one.technique });
  if (goesBack) {
    assert.ok(await reachedBreakpoint(alpha, alpha, id, 'restoring', 'before'), 'it halts before the restore');
    await agentRequest(alpha, 'POST', `/v1/migrations/${id}/cancel`);
    await clearBreakpoint(alpha, beforeRestore);
  }
  const reached = await reachedBreakpoint(watched, alpha, id, one.state, one.point);
  assert.ok(reached, `the migration of ${one.service} ended without passing its state`);
  return { id, tick: await tickOf(one.service) };
}

/** A breakpoint is asked for by these fields and no others. */
function placeOf({ role, state, point, service }: Case): Place {
  return { role, state, point, service };
}

async function injure(fault: Fault): Promise<void> {
  const survivors = { 'source-agent': [beta], 'destination-agent': [alpha], 'source-host': [beta] } as const;
  if (fault === 'source-agent') await lab.killAgent('alpha');
  if (fault === 'destination-agent') await lab.killAgent('beta');
  if (fault === 'source-host') await lab.killHost('alpha');
  if (fault === 'destination-host') await lab.killHost('beta');
  if (fault === 'partition') await lab.partition('alpha', 'beta');
  const left = fault === 'partition' ? [alpha, beta] : fault === 'destination-host' ? [alpha] : survivors[fault];
  for (const host of left) await clearBreakpoints(host);
}

async function mend(fault: Fault): Promise<void> {
  if (fault === 'partition') await lab.heal();
  if (fault === 'source-host') await lab.restartHost('alpha');
  if (fault === 'destination-host') await lab.restartHost('beta');
  alpha = lab.host('alpha');
  beta = lab.host('beta');
  await lab.startAgents(AGENT);
}

async function running(name: string): Promise<Host[]> {
  const found: Host[] = [];
  for (const host of [alpha, beta]) {
    if ((await containers(host, name)).some((container) => container.State === 'running')) found.push(host);
  }
  return found;
}

function names(hosts: readonly Host[]): string[] {
  return hosts.map((host) => host.name);
}

/** While the link is cut: never two active copies, and a source that is neither running nor sure says so. */
async function checkWhileCut(id: string, service: string): Promise<void> {
  const seen = await until<Migration>(`${service} notices the cut`, 60_000, async () => {
    const now = await migration(alpha, id);
    const settled = now.ended_at !== null || now.in_doubt;
    return settled || ['committed', 'redirecting', 'filling', 'removing'].includes(now.state) ? now : undefined;
  });
  const copies = await running(service);
  assert.ok(copies.length <= 1, `two active copies of ${service} while the link is cut (${seen.state})`);
  if (seen.state === 'aborted') assert.deepEqual(names(copies), ['alpha'], 'it went back, so the source runs');
}

async function checkAfterwards(service: string, { id, tick }: Halted, hostLost: boolean): Promise<string> {
  const source = await endedOrSettled(id);
  const theirs = await migration(beta, id).catch(() => undefined);
  let copies = await running(service);
  let tickBefore = tick;
  if (hostLost && copies.length === 0 && source.state === 'done' && theirs?.state === 'done') {
    // The destination's host went down after everything was over for it: its container is stopped, as any is after a
    // reboot, and starts from its files.
    await beta.exec('podman', ['start', service]);
    copies = await running(service);
    tickBefore = 0;
  }
  const where = source.state === 'done' ? 'beta' : 'alpha';
  assert.deepEqual(names(copies), [where], `one copy, where the journal says (${source.state})`);
  const [home] = copies;
  assert.ok(home !== undefined);
  const other = home.name === 'alpha' ? beta : alpha;
  await until(`nothing left of ${service} on ${other.name}`, 30_000, async () =>
    (await containers(other, service)).length === 0 ? true : undefined,
  );
  const codes = [source.error?.code, theirs?.error?.code];
  const memoryLost = codes.includes('UMS_E_HOST_LOST') || codes.includes('UMS_E_MEMORY_LOST');
  assert.ok(hostLost || !memoryLost, 'only the loss of a host may lose memory');
  const first = await lastTick(home, service);
  if (!memoryLost) assert.ok(first >= tickBefore, `the counter went back from ${tickBefore} to ${first}`);
  await until(`${service} goes on`, 10_000, async () => ((await lastTick(home, service)) > first ? true : undefined));
  await checksumOk(home, service);
  return `${source.state}${memoryLost ? ', its memory lost with the host' : ''}`;
}

/**
 * Only where memory was still on its way when its destination lost it, an operator must choose; here as the message
 * advises: the copy that is frozen at the source.
 */
async function endedOrSettled(id: string): Promise<Migration> {
  const now = await until<Migration>(`end or doubt of ${id}`, 60_000, async () => {
    const seen = await migration(alpha, id);
    return seen.ended_at !== null || (seen.in_doubt && seen.state === 'filling') ? seen : undefined;
  });
  if (now.ended_at === null)
    await agentRequest(alpha, 'POST', `/v1/migrations/${id}/recover`, { choice: 'thaw-source' });
  return ended(alpha, id, 60_000);
}

/** The last tick that reached the log, wherever the service is now. A frozen container cannot be asked, its file can. */
async function tickOf(name: string): Promise<number> {
  let last = 0;
  for (const host of [alpha, beta]) {
    if ((await containers(host, name)).length === 0) continue;
    const { stdout } = await host.exec('podman', ['inspect', '--format', '{{.GraphDriver.Data.UpperDir}}', name]);
    const log = await host.exec('tail', ['-n', '4', `${stdout.trim()}/tmp/ticks`], { okExitCodes: [0, 1] });
    for (const match of log.stdout.matchAll(/^tick (\d+) /gm)) last = Math.max(last, Number(match[1]));
  }
  return last;
}

for (const [technique, fault] of TECHNIQUES.flatMap((each) => FAULTS.map((one) => [each, one] as const))) {
  const byDefault = technique === 'cold' || fault === 'source-host' || ASKED_TECHNIQUES !== undefined;
  if (!(CHOSEN_FAULTS?.includes(fault) ?? byDefault)) continue;
  const list = cases(fault, technique);
  describe(`${technique}, ${fault}, at every state`, () => {
    const halted = new Map<string, Halted>();
    before(
      async () => {
        await startMemhog(alpha, 'first', 4);
        await eachOf(list, async (one) => {
          halted.set(one.service, await halt(one));
        });
        await injure(fault);
        if (fault === 'partition') {
          await eachOf(list, async ({ service }) => checkWhileCut(halted.get(service)?.id ?? '', service));
        }
        await mend(fault);
      },
      { timeout: 400_000 },
    );
    after(
      async () => {
        const left = [...list.map((one) => one.service), 'first'];
        for (const host of [alpha, beta]) {
          await host.exec('podman', ['rm', '--force', '--time', '0', '--ignore', ...left], { timeout_ms: 120_000 });
          await nothingStaged(host);
        }
      },
      { timeout: 200_000 },
    );
    for (const one of list) {
      it(`${one.role} ${one.state} (${one.point})`, { timeout: 180_000 }, async (context) => {
        const where = halted.get(one.service);
        assert.ok(where !== undefined, 'its migration was halted');
        const hostLost = fault === 'source-host' || fault === 'destination-host';
        context.diagnostic(`${one.role} ${one.state}: ${await checkAfterwards(one.service, where, hostLost)}`);
      });
    }
  });
}
