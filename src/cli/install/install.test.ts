import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { runtimePackages } from '#src/approaches/images/app.ts';
import { run } from '#src/telemetry/exec.ts';
import { AGENT_NODE_FLAGS } from '#src/agent/node-flags.ts';
import { CHECKOUT } from '../commands/misc.ts';
import { dockerSteps } from './docker.ts';
import { installSteps, type Step, uninstallSteps } from './steps.ts';
import { LAYOUT, unitFile } from './unit.ts';

async function carryOut(steps: readonly Step[]): Promise<void> {
  for (const step of steps) await step.act();
}

it('installs a command line that runs, again over itself, and removes it', { timeout: 60_000 }, async () => {
  const root = await mkdtemp(join(tmpdir(), 'ums-install-'));
  const layout = {
    prefix: join(root, 'opt'),
    link: join(root, 'bin', 'ums'),
    unit: join(root, 'unit', 'ums-agent.service'),
    environment: join(root, 'etc', 'agent.env'),
  };
  try {
    const settings = { name: 'alpha', peerAddress: '192.0.2.1', peerPort: 7440 };
    for (let round = 0; round < 2; round += 1) await carryOut(installSteps(CHECKOUT, layout, settings, false));
    const { stdout } = await run(layout.link, ['doctor', '--json'], { okExitCodes: [0, 4] });
    expect(JSON.parse(stdout)).toHaveProperty('checks');
    expect(await readFile(layout.environment, 'utf8')).toContain('PEER_ADDRESS=192.0.2.1');
    expect(existsSync(join(layout.prefix, 'app', 'node_modules', 'vitest'))).toBe(false);
    expect(existsSync(join(layout.prefix, 'app.new'))).toBe(false);
    await carryOut(uninstallSteps(layout, false));
    for (const path of Object.values(layout)) expect(existsSync(path)).toBe(false);
  } finally {
    await rm(root, { recursive: true, force: true });
  }
});

it('names the runtime in the settings of Docker, keeps what else they say, and takes it out again', async () => {
  const root = await mkdtemp(join(tmpdir(), 'ums-docker-'));
  const places = { settings: join(root, 'daemon.json'), pid: join(root, 'docker.pid') };
  try {
    const others = { 'log-level': 'warn', runtimes: { other: { path: '/usr/bin/other' } } };
    await writeFile(places.settings, JSON.stringify(others));
    await carryOut(dockerSteps('/opt/ums/app', false, places));
    const path = '/opt/ums/app/src/drivers/oci/engine-runtime.sh';
    const wanted = { ...others, runtimes: { ...others.runtimes, ums: { path } } };
    expect(JSON.parse(await readFile(places.settings, 'utf8'))).toEqual(wanted);
    expect(dockerSteps('/opt/ums/app', false, places)).toEqual([]);
    await carryOut(dockerSteps('/opt/ums/app', true, places));
    expect(JSON.parse(await readFile(places.settings, 'utf8'))).toEqual(others);
    await writeFile(places.settings, 'runtimes: ums');
    expect(() => dockerSteps('/opt/ums/app', false, places)).toThrow(/not JSON/);
  } finally {
    await rm(root, { recursive: true, force: true });
  }
});

it('starts Node for an agent as its flags say, from the unit and from the launcher', async () => {
  const flags = AGENT_NODE_FLAGS.join(' ');
  expect(unitFile(LAYOUT)).toContain(`node ${flags} `);
  expect(await readFile(join(CHECKOUT, 'ums'), 'utf8')).toContain(`[ "\${1-}" = agent ]; then exec "$node" ${flags} `);
});

it('takes along what is needed to run, and nothing that only development needs', async () => {
  const packages = await runtimePackages(CHECKOUT);
  expect(packages).toEqual(expect.arrayContaining(['commander', 'fastify', 'undici', 'zod', '@peculiar/x509']));
  for (const name of ['vitest', 'typescript', 'oxlint', '@biomejs/biome']) expect(packages).not.toContain(name);
});
