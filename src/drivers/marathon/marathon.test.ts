import { afterEach, describe, expect, it } from 'vitest';
import { FakeDocker } from '../scheduler/fake-docker.ts';
import { fakeScheduler, type FakeScheduler, readContract, silentScheduler } from '../scheduler/fake-scheduler.ts';
import { SchedulerDriver } from '../scheduler/index.ts';
import { specificationSchema } from '../specification.ts';
import { type MarathonAccess, readAccess } from './access.ts';
import { MarathonApi } from './api.ts';
import { type MarathonHandle, writeHandle } from './handle.ts';
import { idOf, MarathonScheduler, nameOf, type Seen } from './index.ts';
import { runApp } from './launch.ts';

/** Marathon is no part of the tests: its answers are those of contract.fixtures.jsonl, in the shapes that it documents. */
const contract = readContract(new URL('contract.fixtures.jsonl', import.meta.url));
const TASK = 'prod_cache.instance-0c9d5b1a-77aa-11f0-8d31-91b6c2e5a001._app.1';
const NEXT_TASK = 'prod_cache.instance-3b61f0c7-52de-11f0-86a9-4e0f7d18b002._app.1';
const HANDLE = writeHandle({ v: 1, engine: 'marathon', id: '/prod/cache', name: 'prod_cache' });
const SHORT_MS = 700;

const used: FakeScheduler[] = [];
afterEach(() => {
  for (const fake of used.splice(0)) {
    fake.close();
    expect(fake.complaints).toEqual([]);
    expect(fake.left()).toEqual([]);
  }
});

interface Stage {
  docker: FakeDocker;
  api: MarathonApi;
  scheduler: MarathonScheduler;
  driver: SchedulerDriver<Seen, MarathonHandle>;
}

const NAMES = ['alpha', 'alpha.example', '192.0.2.10'];

function nobody(): never {
  throw new Error('nobody may be asked');
}

function staged(access: MarathonAccess, docker: FakeDocker, limit_ms?: number): Stage {
  const api = new MarathonApi(access, limit_ms);
  const scheduler = new MarathonScheduler({ docker, api: () => api, installed: () => true, names: () => NAMES });
  const driver = new SchedulerDriver(scheduler, docker, { start_ms: SHORT_MS, end_ms: SHORT_MS });
  return { docker, api, scheduler, driver };
}

/** With each change, what `then` says happens to the containers. */
async function stage(
  name: string,
  then: (docker: FakeDocker, change: string) => void = () => undefined,
  authorization?: string,
): Promise<Stage> {
  const docker = new FakeDocker();
  const fake = await fakeScheduler(contract, name, (change) => then(docker, change));
  used.push(fake);
  return staged({ address: fake.address, authorization }, docker);
}

function contain(docker: FakeDocker, task: string): void {
  const labels = { MESOS_TASK_ID: task, team: 'shop' };
  const env = [`MESOS_TASK_ID=${task}`, 'MARATHON_APP_ID=/prod/cache', 'HOST=alpha', 'PORT0=31000', 'PORTAL=open'];
  docker.put(`mesos-${task.slice(-12)}`, { pid: 4711, labels, env, binds: ['/mnt/mesos/sandbox', '/data'] });
}

describe('apps of Marathon', () => {
  it('are those that run here, and those without instances that belong here', async () => {
    const { docker, driver } = await stage('what is here', undefined, 'token=eyJ0.abc');
    contain(docker, TASK);
    const common = { engine: 'marathon', ports: [], created_at: '2026-11-30T07:00:00.000Z' };
    expect(await driver.list()).toEqual([
      { ...common, id: '/prod/cache', name: 'prod_cache', state: 'running', image: 'localhost/app:1', pid: 4711 },
      { ...common, id: '/pinned', name: 'pinned', state: 'stopped', image: 'localhost/app:1', pid: 0 },
      { ...common, id: '/native', name: 'native', state: 'running', image: '', pid: 0 },
    ]);
  });

  it('are described by their container, without what Marathon and Mesos put into it', async () => {
    const { docker, driver } = await stage('what is here', undefined, 'token=eyJ0.abc');
    contain(docker, TASK);
    const { specification, handle } = await driver.describe('prod_cache');
    expect(specificationSchema.parse(specification)).toEqual(specification);
    expect(specification).toMatchObject({ engine: 'marathon', name: 'prod_cache' });
    expect(Object.keys(specification.labels)).toEqual(['team']);
    expect(specification.env.toSorted()).toEqual(['PATH=/bin', 'PORTAL=open']);
    expect(specification.mounts.map(({ destination }) => destination)).toEqual(['/data']);
    expect(handle).toBe(HANDLE);
    const { specification: bare } = await driver.describe('pinned');
    expect(specificationSchema.parse(bare)).toEqual(bare);
  });

  it.each([
    ['several instances', /prod_cache has 3 instances, and only a service of one can move/],
    ['being replaced', /2 tasks at this moment/],
    ['without Docker', /runs without Docker \(MESOS\)/],
  ])('are refused with the reason: %s', async (name, why) => {
    const { docker, driver } = await stage(name);
    contain(docker, TASK);
    await expect(driver.describe('prod_cache')).rejects.toMatchObject({
      code: 'UMS_E_SPECIFICATION',
      message: expect.stringMatching(why),
      state: 'Nothing was changed.',
    });
  });

  it('are stopped and started by the number of their instances', async () => {
    const { docker, driver } = await stage('stop and start', (containers) => containers.clear());
    contain(docker, TASK);
    expect(await driver.state(HANDLE)).toBe('running');
    await driver.stop(HANDLE);
    expect(await driver.state(HANDLE)).toBe('stopped');
    // Its next container comes when Mesos has found a place.
    setTimeout(() => contain(docker, NEXT_TASK), SHORT_MS / 4);
    await driver.start(HANDLE);
    expect(await driver.state(HANDLE)).toBe('running');
  });

  it('that somebody else changed in between are said to be so', async () => {
    const { driver } = await stage('changed meanwhile');
    await expect(driver.start(HANDLE)).rejects.toMatchObject({
      fault: 'user',
      message: expect.stringMatching(/Somebody else changed the app prod_cache.*2026-11-30T08:00:05\.500Z/),
    });
  });

  it('are left alone while Marathon is changing them', async () => {
    const { driver } = await stage('locked');
    await expect(driver.start(HANDLE)).rejects.toMatchObject({
      fault: 'user',
      message: expect.stringMatching(/still changing the app \/prod\/cache/),
      state: expect.stringMatching(/nothing else was changed/),
    });
    const other = await stage('remove, locked');
    contain(other.docker, TASK);
    await expect(other.driver.remove(HANDLE)).rejects.toThrow(/still changing/);
  });

  it('say what they wait for when they do not start', async () => {
    const { driver } = await stage('no offer');
    await expect(driver.start(HANDLE)).rejects.toThrow(/did not start: no offer of Mesos fits it/);
  });

  it('are removed whole, and once', async () => {
    const { docker, driver } = await stage('remove', (containers) => containers.clear());
    contain(docker, TASK);
    await driver.remove(HANDLE);
    expect(await driver.state(HANDLE)).toBe('absent');
    await driver.remove(HANDLE);
    await driver.discard(HANDLE);
    await expect(driver.stop(HANDLE)).rejects.toMatchObject({ code: 'UMS_E_SERVICE_GONE' });
    await expect(driver.start(HANDLE)).rejects.toMatchObject({ code: 'UMS_E_SERVICE_GONE' });
  });

  it('have names that can be turned back', () => {
    expect(['/cache', '/prod/cache', '/a/b.c/d-e'].map(nameOf)).toEqual(['cache', 'prod_cache', 'a_b.c_d-e']);
    expect(['cache', 'prod_cache', 'a_b.c_d-e'].map(idOf)).toEqual(['/cache', '/prod/cache', '/a/b.c/d-e']);
  });
});

describe('a Marathon', () => {
  it('that nobody has named costs no request and has nothing', async () => {
    const scheduler = new MarathonScheduler({ docker: new FakeDocker(), api: nobody, installed: () => false });
    const driver = new SchedulerDriver(scheduler);
    expect(await driver.list()).toEqual([]);
    expect(await driver.fingerprint()).toMatchObject({ available: false, mend: expect.stringMatching(/MARATHON_URL/) });
  });

  it('says its version', async () => {
    const { driver } = await stage('info');
    expect(await driver.fingerprint()).toMatchObject({ engine: 'marathon', available: true, version: '1.11.24' });
  });

  it.each(['rights', 'no user'])('that does not let the agent in (%s) is said so', async (name) => {
    const { driver } = await stage(name);
    await expect(driver.list()).rejects.toMatchObject({
      code: 'UMS_E_ENGINE',
      fault: 'user',
      mend: expect.stringMatching(/MARATHON_TOKEN/),
    });
  });

  it('whose answer is strange is not believed', async () => {
    const { driver } = await stage('strange');
    await expect(driver.list()).rejects.toThrow(/answer to \/v2\/apps.* is not what this version of ums knows/);
  });

  it('that does not answer is waited for only so long', async () => {
    const silent = await silentScheduler();
    const { driver } = staged({ address: silent.address, authorization: undefined }, new FakeDocker(), SHORT_MS);
    await expect(driver.list()).rejects.toThrow(/Marathon does not answer at http.*: nothing came within 700 ms/);
    silent.close();
  });

  it('is where the environment says, and its password is shown to nobody', async () => {
    expect(readAccess({})).toBeUndefined();
    expect(readAccess({ MARATHON_URL: 'https://a.example/service/marathon/', MARATHON_TOKEN: 'eyJ0.abc' })).toEqual({
      address: 'https://a.example/service/marathon',
      authorization: 'token=eyJ0.abc',
    });
    expect(() => readAccess({ MARATHON_URL: 'ftp://ops:secret@a.example' })).toThrow(/^(?!.*secret).*MARATHON_URL/);
    const fake = await fakeScheduler(contract, 'a user in the address');
    used.push(fake);
    const access = readAccess({ MARATHON_URL: fake.address.replace('http://', 'http://ops:s3%3Acret@') });
    if (access === undefined) throw new Error('no access');
    expect(access.address).toBe(fake.address);
    expect(await staged(access, new FakeDocker()).driver.list()).toEqual([]);
  });
});

describe('an app that is made for a capsule', () => {
  const APP = { instances: 1 };

  it('is new, and waited for', async () => {
    const { docker, api, scheduler } = await stage('launch');
    setTimeout(() => contain(docker, TASK), SHORT_MS / 4);
    await runApp('prod_cache', APP, api, scheduler, SHORT_MS * 4);
  });

  it('is removed again when it does not start, with Marathon’s reason', async () => {
    const { api, scheduler } = await stage('launch that fails');
    await expect(runApp('prod_cache', APP, api, scheduler, SHORT_MS)).rejects.toMatchObject({
      message: expect.stringMatching(/TASK_FAILED Container exited with status 125/),
      state: 'It was removed again.',
    });
  });

  it('leaves one of its name as it is, and needs a name that Marathon takes', async () => {
    const { api, scheduler } = await stage('name taken');
    await expect(runApp('prod_cache', APP, api, scheduler)).rejects.toMatchObject({ code: 'UMS_E_NAME_TAKEN' });
    await expect(runApp('Cache', APP, api, scheduler)).rejects.toMatchObject({ code: 'UMS_E_SPECIFICATION' });
  });
});
