import { mkdir, writeFile } from 'node:fs/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  doneMigration,
  FakeAgent,
  ID,
  migration,
  NOW_MS,
  report,
  runCli,
  service,
  serviceDetail,
  system,
} from './testing/fake-agent.ts';

let agent: FakeAgent;
beforeEach(async () => {
  agent = await FakeAgent.start();
  await mkdir(`${agent.directory}/config/contexts`, { recursive: true });
  await writeFile(
    `${agent.directory}/config/contexts/fake.json`,
    JSON.stringify({ name: 'fake', socket: agent.socket }),
  );
});
afterEach(() => agent.stop());

const cli = (...argv: string[]) => runCli(agent, argv, { env: { UMS_CONTEXT: 'fake' } });
const paired = {
  name: 'beta',
  address: '10.77.0.2',
  port: 7440,
  status: 'reachable',
  certificate_expires_at: NOW_MS + 86_400_000,
  paired_at: NOW_MS,
  rtt_ms: 0.4,
  problem: null,
};
const frontman = {
  id: 'f-1',
  service: 'redis',
  listen: { address: '0.0.0.0', port: 6379 },
  port: 6379,
  mode: 'tcp',
  holdLimit_ms: 30_000,
  status: 'open',
  target: 'here',
  connections: 1,
  waiting: 0,
};

describe('commands', () => {
  it('lists services and systems for people, programs and scripts', async () => {
    agent.script = {
      'GET /v1/services': { json: [service()] },
      'GET /v1/systems': { json: [paired] },
      'GET /v1/system': { json: system() },
    };
    const people = await cli('ls');
    expect(people.out).toMatch(/^NAME/);
    expect(people.out).toContain('4711');
    for (const line of people.out.split('\n')) expect(line.length).toBeLessThanOrEqual(80);
    expect(JSON.parse((await cli('ls', '--json')).out)).toEqual([service()]);
    expect((await cli('--quiet', 'ls')).out).toBe('redis\n');
    expect((await cli('systems')).out).toContain('beta');
    expect((await cli('systems', '--quiet')).out).toBe('beta\n');
    expect((await cli('version', '--json')).out).toContain('"agent":"0.1.0"');
  });

  it('pairs, renews and revokes', async () => {
    agent.script = {
      'POST /v1/pairing/invite': { json: { token: 'T0KEN', expires_at: NOW_MS + 60_000 } },
      'POST /v1/pairing/join': { json: paired },
      'POST /v1/systems/beta/rotate': { json: paired },
      'DELETE /v1/systems/beta': { json: {} },
      'DELETE /v1/systems/bta': { status: 404, json: { error: report('UMS_E_SYSTEM_UNKNOWN', 'no bta') } },
      'GET /v1/systems': { json: [paired] },
    };
    expect((await cli('pair', 'invite', '--ttl', '1m')).out).toContain('ums pair join T0KEN');
    expect(agent.requests[0]?.body).toEqual({ ttl_s: 60 });
    expect((await cli('pair', 'join', 'T0KEN')).out).toContain('Paired with beta');
    expect((await cli('pair', 'rotate', 'beta')).status).toBe(0);
    expect((await cli('pair', 'revoke', 'beta')).status).toBe(0);
    const wrong = await cli('pair', 'revoke', 'bta');
    expect(wrong.status).toBe(3);
    expect(wrong.err).toContain('Did you mean beta?');
  });

  it('inspects and controls services, and does not remove a running one unasked', async () => {
    agent.script = {
      'GET /v1/services/redis': { json: serviceDetail() },
      'POST /v1/services/redis/stop': { json: {} },
      'POST /v1/services/redis/remove': { json: {} },
    };
    expect((await cli('inspect', 'redis')).out).toContain('Its log so far stays at the source.');
    expect((await cli('stop', 'redis')).status).toBe(0);
    expect((await cli('rm', 'redis')).status).toBe(2);
    expect(agent.requests.some((each) => each.key.endsWith('/remove'))).toBe(false);
    expect((await cli('rm', '--force', 'redis')).status).toBe(0);
  });

  it('shows, cancels and settles migrations', async () => {
    const doubtful = migration({ state: 'committing', in_doubt: true });
    agent.script = {
      'GET /v1/migrations': { json: [doneMigration(), migration({ id: 'm-aaaaaaaaaaaaaaaaaaaa', state: 'dumping' })] },
      [`GET /v1/migrations/${ID}`]: { json: doubtful },
      [`POST /v1/migrations/${ID}/cancel`]: {
        status: 409,
        json: { error: report('UMS_E_MIGRATION_STATE', 'too late') },
      },
      [`POST /v1/migrations/${ID}/recover`]: { json: migration({ state: 'aborting' }) },
    };
    expect((await cli('migrations')).out).toContain('alpha → beta');
    expect((await cli('migrations', '--active', '--quiet')).out).toBe('m-aaaaaaaaaaaaaaaaaaaa\n');
    expect((await cli('show', ID)).out).toContain('IN DOUBT');
    expect((await cli('cancel', ID)).status).toBe(4);
    const explained = await cli('recover', ID);
    expect(explained.out).toContain('--thaw-source');
    expect(explained.out).toContain('NO copy');
    expect(agent.requests.some((each) => each.key.endsWith('/recover'))).toBe(false);
    expect((await cli('recover', ID, '--thaw-source', '--drop-source')).status).toBe(2);
    expect((await cli('recover', ID, '--drop-source')).status).toBe(0);
    expect(agent.requests.at(-1)?.body).toEqual({ choice: 'drop-source' });
  });

  it('adds, lists and removes Frontmen', async () => {
    agent.script = {
      'POST /v1/frontmen': { json: frontman },
      'GET /v1/frontmen': { json: [frontman] },
      'DELETE /v1/frontmen/f-1': { json: {} },
    };
    expect((await cli('frontman', 'add', 'redis', '--listen', ':6379', '--port', '6379')).out).toContain(
      '0.0.0.0:6379',
    );
    expect(agent.requests[0]?.body).toMatchObject({ listen: { address: '0.0.0.0', port: 6379 }, holdLimit_ms: 30_000 });
    expect((await cli('frontman', 'ls')).out).toContain('open');
    expect((await cli('frontman', 'rm', 'f-1')).status).toBe(0);
    expect((await cli('frontman', 'add', 'redis', '--listen', 'x', '--port', '1')).status).toBe(2);
  });

  it('refuses an answer that it does not understand', async () => {
    agent.script = { 'GET /v1/services': { json: [{ name: 'redis' }] } };
    const said = await cli('ls');
    expect(said.status).toBe(1);
    expect(said.err).toContain('UMS_E_INTERNAL');
  });

  it('shows malformed commands like every other error, and as JSON when asked', async () => {
    const people = await cli('migrat');
    expect(people.status).toBe(2);
    expect(people.err).toContain('UMS_E_USAGE');
    expect(people.err).toContain('migrate');
    const json = await cli('migrate', 'redis', '--json');
    expect(json.events()).toMatchObject([{ event: 'error', code: 'UMS_E_USAGE', exit_status: 2 }]);
    const unknown = await runCli(agent, ['--context', 'fak', 'ls']);
    expect(unknown.status).toBe(2);
    expect(unknown.err).toContain('Did you mean fake?');
    expect((await cli('pair')).err).toContain('invite');
  });
});
