import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Migration, MigrationEvent } from '#src/coordination/schema.ts';
import {
  doneMigration,
  FakeAgent,
  goodEvents,
  ID,
  migration,
  NOW_MS,
  report,
  runCli,
  service,
} from './testing/fake-agent.ts';

let agent: FakeAgent;
const contextEnv = () => ({ UMS_RUN_DIR: `${agent.directory}/run` });

async function cli(argv: string[], terminal: Parameters<typeof runCli>[2] = {}) {
  return runCli(agent, ['--context', 'fake', ...argv], terminal);
}

beforeEach(async () => {
  agent = await FakeAgent.start();
  const { mkdir, writeFile } = await import('node:fs/promises');
  await mkdir(`${agent.directory}/config/contexts`, { recursive: true });
  await writeFile(
    `${agent.directory}/config/contexts/fake.json`,
    JSON.stringify({ name: 'fake', socket: agent.socket }),
  );
});
afterEach(() => agent.stop());

function scriptMigration(events: readonly MigrationEvent[], end: Migration = doneMigration()) {
  agent.script = {
    'POST /v1/migrations': { json: migration() },
    [`GET /v1/migrations/${ID}/events`]: { lines: events },
    [`GET /v1/migrations/${ID}`]: { json: end },
  };
}

describe('migrate', () => {
  it('streams every event and ends with a result when it prints JSON', async () => {
    scriptMigration(goodEvents());
    const said = await cli(['migrate', 'redis', '--to', 'beta', '--json', '--keep-source-stopped', '--timeout', '10m']);
    expect(said.status).toBe(0);
    expect(said.err).toBe('');
    const events = said.events();
    expect(events.slice(0, -1).map((event) => event['seq'])).toEqual([1, 2, 3, 4, 5, 6, 7]);
    expect(events.at(-1)).toMatchObject({
      event: 'result',
      status: 'done',
      id: ID,
      source: 'alpha',
      destination: 'beta',
      technique: 'cold',
      approach: 'orchestrator-level',
      downtime_ms: 812.5,
      total_ms: 2400,
      bytes_on_wire: 281_018_368,
      state_bytes: 268_435_456,
    });
    expect(events.at(-1)?.['steps']).toEqual(doneMigration().steps);
    expect(agent.requests[0]?.body).toEqual({
      service: 'redis',
      to: 'beta',
      options: {
        keepSourceStopped: true,
        timeout_ms: 600_000,
        bindMounts: 'refuse',
        healthTimeout_ms: 10_000,
        technique: 'auto',
        approach: 'auto',
        maxDowntime_ms: 300,
        maxRounds: 30,
        onStall: 'throttle',
        rateLimit_bytes_s: 0,
        sharedVolumes: [],
      },
    });
  });

  it('shows plain lines and a timeline with the downtime in 80 columns when there is no terminal', async () => {
    scriptMigration(goodEvents());
    const said = await cli(['migrate', 'redis', '--to', 'beta']);
    expect(said.status).toBe(0);
    expect(said.out).toContain('Moving redis from alpha to beta');
    expect(said.out).toContain('the link is slower than usual');
    expect(said.out).toMatch(/downtime 813 ms, total 2.40 s, measured by the agents/);
    expect(said.out).toMatch(/dumping +500 ms +█+/);
    expect(said.out).toMatch(/downtime +813 ms +▒+/);
    expect(said.out).not.toContain('\u001B');
    for (const line of said.out.split('\n')) expect(line.length).toBeLessThanOrEqual(80);
  });

  it('draws in place on a terminal', async () => {
    scriptMigration(goodEvents());
    const said = await cli(['migrate', 'redis', '--to', 'beta'], { tty: true, env: { NO_COLOR: '1' } });
    expect(said.status).toBe(0);
    expect(said.out).toContain('✔ Copying its memory (frozen)');
    expect(said.out).toContain('\u001B[2K');
    expect(said.out).not.toContain('\u001B[32m');
  });

  it('reports an undone migration with the exit status of its code', async () => {
    const end = migration({
      state: 'aborted',
      ended_at: NOW_MS,
      error: report('UMS_E_DUMP', 'CRIU refused: io_uring'),
    });
    scriptMigration([{ seq: 1, at: NOW_MS, id: ID, event: 'ended', migration: end }], end);
    const people = await cli(['migrate', 'redis', '--to', 'beta']);
    expect(people.status).toBe(5);
    expect(people.err).toContain('UMS_E_DUMP');
    expect(people.err).toContain('io_uring');
    const json = await cli(['migrate', 'redis', '--to', 'beta', '--json']);
    expect(json.events().at(-1)).toMatchObject({ event: 'result', status: 'aborted', error: { code: 'UMS_E_DUMP' } });
  });

  it('ends with status 6 and both choices when an operator must choose', async () => {
    const end = migration({ state: 'committing', in_doubt: true, error: report('UMS_E_IN_DOUBT', 'beta was lost') });
    scriptMigration(
      [{ seq: 1, at: NOW_MS, id: ID, event: 'in_doubt', error: report('UMS_E_IN_DOUBT', 'beta was lost') }],
      end,
    );
    const said = await cli(['migrate', 'redis', '--to', 'beta']);
    expect(said.status).toBe(6);
    expect(said.out).toContain(`ums recover ${ID} --thaw-source`);
    expect(said.out).toContain(`ums recover ${ID} --drop-source`);
    expect(said.out).toContain('TWO copies');
  });

  it('goes on with the next event when the connection breaks', async () => {
    const events = goodEvents();
    const seen = Promise.withResolvers<void>();
    scriptMigration([]);
    agent.script[`GET /v1/migrations/${ID}/events`] = (_body, url) => {
      const after = Number(url.split('after=')[1]);
      return after === 0
        ? { lines: events.slice(0, 3), cut: true, hold: seen.promise }
        : { lines: events.slice(after) };
    };
    const said = await cli(['migrate', 'redis', '--to', 'beta', '--json'], {
      onOut: (text) => {
        if (text.includes('"seq":3')) seen.resolve();
      },
    });
    expect(said.status).toBe(0);
    expect(
      said
        .events()
        .slice(0, -1)
        .map((event) => event['seq']),
    ).toEqual([1, 2, 3, 4, 5, 6, 7]);
  });

  it('asks to cancel at the first Ctrl-C and detaches at the second', async () => {
    const hold = Promise.withResolvers<void>();
    scriptMigration([]);
    agent.script[`GET /v1/migrations/${ID}/events`] = { lines: goodEvents().slice(0, 2), hold: hold.promise };
    agent.script[`POST /v1/migrations/${ID}/cancel`] = { json: migration({ state: 'aborting' }) };
    const said = await cli(['migrate', 'redis', '--to', 'beta'], {
      onReady: (interrupt) => {
        interrupt();
        const poll = setInterval(() => {
          if (!agent.requests.some((each) => each.key.endsWith('/cancel'))) return;
          clearInterval(poll);
          interrupt();
        }, 5);
      },
    });
    hold.resolve();
    expect(said.status).toBe(130);
    expect(said.out).toContain('Cancelling');
    expect(said.out).toContain(`ums show ${ID} --follow`);
  });

  it('refuses with a result as the last line, and names the nearest service and system', async () => {
    agent.script = {
      'POST /v1/migrations': { status: 404, json: { error: report('UMS_E_SERVICE_UNKNOWN', 'no reids') } },
      'GET /v1/services': { json: [service(), service({ name: 'postgres' })] },
    };
    const said = await cli(['migrate', 'reids', '--to', 'beta', '--json']);
    expect(said.status).toBe(3);
    const last = said.events().at(-1);
    expect(last).toMatchObject({
      event: 'result',
      status: 'refused',
      id: null,
      error: { code: 'UMS_E_SERVICE_UNKNOWN' },
    });
    expect(JSON.stringify(last)).toContain('Did you mean redis?');
    const people = await cli(['migrate', 'reids', '--to', 'beta']);
    expect(people.err).toContain('Did you mean redis?');
  });

  it('names the nearest system when the agent finds out later that it is not known', async () => {
    const error = report('UMS_E_SYSTEM_UNKNOWN', 'no bta');
    const end = migration({ state: 'aborted', destination: 'bta', ended_at: NOW_MS, error });
    const at = NOW_MS;
    scriptMigration(
      [
        { seq: 1, at, id: ID, event: 'state', from: 'planned', state: 'checking' },
        { seq: 2, at, id: ID, event: 'state', from: 'checking', state: 'aborting' },
        { seq: 3, at, id: ID, event: 'ended', migration: end },
      ],
      end,
    );
    const beta = {
      name: 'beta',
      address: '10.77.0.2',
      port: 7440,
      status: 'reachable',
      certificate_expires_at: at,
      paired_at: at,
      rtt_ms: 1,
      problem: null,
    };
    agent.script['GET /v1/systems'] = { json: [beta] };
    const said = await cli(['migrate', 'redis', '--to', 'bta']);
    expect(said.status).toBe(3);
    expect(said.err).toContain('Did you mean beta?');
    expect(said.out).toContain('Checking both systems: 0 ms (not finished)');
  });

  it('only checks with --dry-run', async () => {
    const finding = {
      severity: 'error',
      id: 'port.taken',
      what: 'Port 6379 is in use at beta.',
      why: 'redis publishes it.',
      mend: 'Stop what uses it.',
    };
    agent.script = {
      'POST /v1/check': {
        json: {
          service: 'redis',
          source: 'alpha',
          destination: 'beta',
          technique: 'cold',
          approach: 'orchestrator-level',
          feasible: false,
          findings: [finding],
          state_bytes: 1,
          file_bytes: 2,
          why: 'Cold: it fits.',
          techniques: [],
        },
      },
    };
    const said = await cli(['migrate', 'redis', '--to', 'beta', '--dry-run']);
    expect(said.status).toBe(4);
    expect(said.out).toContain('Port 6379 is in use at beta.');
    expect(said.out).toContain('To do: Stop what uses it.');
    expect(agent.requests.map((each) => each.key)).toEqual(['POST /v1/check']);
    const json = await cli(['check', 'redis', '--to', 'beta', '--json']);
    expect(json.status).toBe(4);
    expect(json.events()[0]).toMatchObject({ feasible: false, findings: [finding] });
  });

  it('finds the local agent under UMS_RUN_DIR and says when none answers', async () => {
    const said = await runCli(agent, ['ls'], { env: contextEnv() });
    expect(said.status).toBe(8);
    expect(said.err).toContain('UMS_E_AGENT_UNREACHABLE');
    expect(said.err).toContain('run/api/agent.sock');
  });
});
