import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { agentRequest } from '#lab/agents.ts';
import type { Host } from '#lab/host.ts';
import { Lab } from '#lab/lab.ts';
import type { Migration } from '#src/coordination/schema.ts';
import {
  DESTINATION_STATES,
  FINAL_STATES,
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
  reachedBreakpoint,
  setBreakpoint,
  startMemhog,
  until,
} from './support/moves.ts';

/**
 * For every state of the saga, on both sides: the step has acted but its end is not written yet; now an agent is killed,
 * or a whole host, or the link is cut. Afterwards there must be exactly one healthy copy with its state. The cases come
 * from the state table, so that a new state cannot be forgotten. UMS_KILL_POINTS=before,after runs both ends of each
 * step; UMS_KILL_FAULTS and UMS_KILL_STATES choose some.
 */
const FAULTS = ['source-agent', 'destination-agent', 'partition', 'source-host', 'destination-host'] as const;
type Fault = (typeof FAULTS)[number];

const POINTS = (process.env['UMS_KILL_POINTS'] ?? 'after').split(',');
const CHOSEN_FAULTS = process.env['UMS_KILL_FAULTS']?.split(',');
const CHOSEN_STATES = process.env['UMS_KILL_STATES']?.split(',');

/** States that only a migration which goes back passes through: there, it is made to go back by cancelling it. */
const GOING_BACK: readonly MigrationState[] = ['aborting'];

interface Case {
  role: Role;
  state: MigrationState;
  point: string;
  fault: Fault;
}

function isFinal(state: MigrationState): boolean {
  return FINAL_STATES.some((final) => final === state);
}

function cases(): Case[] {
  const list: Case[] = [];
  const sides: [Role, readonly MigrationState[]][] = [
    ['source', SOURCE_STATES],
    ['destination', DESTINATION_STATES],
  ];
  for (const fault of FAULTS) {
    for (const [role, states] of sides) {
      for (const state of states) {
        if (isFinal(state)) continue;
        for (const point of POINTS) list.push({ role, state, point, fault });
      }
    }
  }
  return list.filter(
    (one) =>
      (CHOSEN_FAULTS?.includes(one.fault) ?? true) && (CHOSEN_STATES?.includes(`${one.role}:${one.state}`) ?? true),
  );
}

const lab = Lab.open();
const PEER_TIMEOUT_MS = 2000;
const AGENT = { faultInjection: true, args: ['--peer-timeout', String(PEER_TIMEOUT_MS)] };

let alpha: Host;
let beta: Host;
let number = 0;

before(async () => {
  await lab.up({ agents: false });
  for (const host of lab.hosts) await lab.stopAgent(host.name);
  await lab.startAgents(AGENT);
  alpha = lab.host('alpha');
  beta = lab.host('beta');
});

after(async () => {
  await lab.heal();
  for (const host of lab.hosts) await lab.stopAgent(host.name);
  await lab.startAgents();
});

async function injure(fault: Fault): Promise<void> {
  switch (fault) {
    case 'source-agent':
      await lab.killAgent('alpha');
      await clearBreakpoints(beta);
      return;
    case 'destination-agent':
      await lab.killAgent('beta');
      await clearBreakpoints(alpha);
      return;
    case 'source-host':
      await lab.killHost('alpha');
      await clearBreakpoints(beta);
      return;
    case 'destination-host':
      await lab.killHost('beta');
      await clearBreakpoints(alpha);
      return;
    case 'partition':
      await lab.partition('alpha', 'beta');
      await clearBreakpoints(alpha);
      await clearBreakpoints(beta);
      return;
  }
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
    if (!host.running) continue;
    if ((await containers(host, name)).some((container) => container.State === 'running')) found.push(host);
  }
  return found;
}

/** While the link is cut: never two active copies, and a source that is neither running nor sure says so. */
async function checkWhileCut(id: string, name: string): Promise<void> {
  const seen = await until<Migration>(`${id} notices the cut`, 40_000, async () => {
    const now = await migration(alpha, id);
    return now.ended_at !== null || now.in_doubt || ['committed', 'redirecting', 'removing'].includes(now.state)
      ? now
      : undefined;
  });
  const copies = await running(name);
  assert.ok(copies.length <= 1, `two active copies while the link is cut (${seen.state})`);
  if (seen.ended_at !== null && seen.state === 'aborted') {
    assert.deepEqual(
      copies.map((host) => host.name),
      ['alpha'],
      'went back, so the source runs',
    );
  }
}

async function checkAfterwards(id: string, name: string, tickBefore: number, hostLost: boolean): Promise<void> {
  const source = await ended(alpha, id, 60_000);
  const theirs = await migration(beta, id).catch(() => undefined);
  let copies = await running(name);
  if (hostLost && copies.length === 0 && source.state === 'done' && theirs?.state === 'done') {
    // The destination's host went down after everything was over for it: its container is stopped, as any is after a
    // reboot, and starts from its files.
    await beta.exec('podman', ['start', name]);
    copies = await running(name);
    tickBefore = 0;
  }
  const where = source.state === 'done' ? 'beta' : 'alpha';
  assert.deepEqual(
    copies.map((host) => host.name),
    [where],
    `one copy, where the journal says (${source.state})`,
  );
  const [home] = copies;
  assert.ok(home !== undefined);
  const other = home.name === 'alpha' ? beta : alpha;
  await until(`nothing left of ${name} on ${other.name}`, 30_000, async () =>
    (await containers(other, name)).length === 0 ? true : undefined,
  );
  const memoryLost = source.error?.code === 'UMS_E_HOST_LOST' || theirs?.error?.code === 'UMS_E_HOST_LOST';
  const first = await lastTick(home, name);
  assert.ok(hostLost || !memoryLost, 'only the loss of a host may lose memory');
  if (!memoryLost) assert.ok(first >= tickBefore, `the counter went back from ${tickBefore} to ${first}`);
  await until(`${name} goes on`, 10_000, async () => ((await lastTick(home, name)) > first ? true : undefined));
  await checksumOk(home, name);
  await nothingStaged(alpha);
  await nothingStaged(beta);
}

function mayLoseMemory(one: Case): boolean {
  return one.fault === 'source-host' || one.fault === 'destination-host';
}

describe('whatever is killed, whenever', () => {
  for (const one of cases()) {
    it(`${one.fault} at ${one.role} ${one.state} (${one.point})`, { timeout: 180_000 }, async (context) => {
      number += 1;
      const name = `kill-${number}`;
      await startMemhog(alpha, name, 4);
      await setBreakpoint(one.role === 'source' ? alpha : beta, one.role, one.state, one.point);
      if (GOING_BACK.includes(one.state)) await setBreakpoint(alpha, 'source', 'restoring', 'before');
      const { id } = await migrate(alpha, name, 'beta');
      const watched = one.role === 'source' ? alpha : beta;
      if (GOING_BACK.includes(one.state)) await goBack(id);
      const reached = await reachedBreakpoint(watched, alpha, id, one.state, one.point);
      assert.ok(reached, `the migration ended without passing ${one.role} ${one.state}`);
      const tickBefore = await tickOf(name);
      await injure(one.fault);
      if (one.fault === 'partition') await checkWhileCut(id, name);
      await mend(one.fault);
      await checkAfterwards(id, name, tickBefore, mayLoseMemory(one));
      context.diagnostic(`${one.fault} at ${one.role} ${one.state}: ${(await migration(alpha, id)).state}`);
      for (const host of [alpha, beta]) {
        await host.exec('podman', ['rm', '--force', '--time', '0', '--ignore', name], { timeout_ms: 30_000 });
      }
    });
  }
});

/** Makes a migration go back: halts it before the restore, cancels it there, and lets it go on to its breakpoint. */
async function goBack(id: string): Promise<void> {
  assert.ok(await reachedBreakpoint(alpha, alpha, id, 'restoring', 'before'), 'it halts before the restore');
  await agentRequest(alpha, 'POST', `/v1/migrations/${id}/cancel`);
  await clearBreakpoint(alpha, 'source', 'restoring', 'before');
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
