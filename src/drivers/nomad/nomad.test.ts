import { afterEach, describe, expect, it } from 'vitest';
import { FakeDocker } from '../scheduler/fake-docker.ts';
import { fakeScheduler, type FakeScheduler, readContract, silentScheduler } from '../scheduler/fake-scheduler.ts';
import { SchedulerDriver } from '../scheduler/index.ts';
import { specificationSchema } from '../specification.ts';
import { readAccess } from './access.ts';
import { NomadApi } from './api.ts';
import { type NomadHandle, writeHandle } from './handle.ts';
import { NomadScheduler, type Seen, whyNotMovable } from './index.ts';
import { runJob } from './launch.ts';
import { type Job, jobSchema } from './schema.ts';

/** Nomad is no part of the tests: its answers are those of contract.fixtures.jsonl, in the shapes that Nomad documents. */
const contract = readContract(new URL('contract.fixtures.jsonl', import.meta.url));
const TOKEN = '11111111-2222-3333-4444-555555555555';
const FIRST = '0c9d5b1a-77aa-4f02-8d31-91b6c2e5a001';
const SECOND = '3b61f0c7-52de-0b48-c6a9-4e0f7d18b002';
const HANDLE = writeHandle({ v: 1, engine: 'nomad', namespace: 'default', id: 'cache', name: 'cache' });
const NEW_JOB = { ID: 'cache', Namespace: 'default', Type: 'service', TaskGroups: [] };
const SUBMITTED = new Date(1_796_000_000_000).toISOString();
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
  api: NomadApi;
  scheduler: NomadScheduler;
  driver: SchedulerDriver<Seen, NomadHandle>;
}

function staged(address: string, docker: FakeDocker, token?: string, limit_ms?: number): Stage {
  const api = new NomadApi({ address, token, namespace: 'default' }, limit_ms);
  const scheduler = new NomadScheduler({ docker, api: () => api, installed: () => Promise.resolve(true) });
  const driver = new SchedulerDriver(scheduler, docker, { start_ms: SHORT_MS, end_ms: SHORT_MS });
  return { docker, api, scheduler, driver };
}

/** With each change, what `then` says happens to the containers. */
async function stage(
  name: string,
  then: (docker: FakeDocker, change: string) => void = () => undefined,
  token?: string,
): Promise<Stage> {
  const docker = new FakeDocker();
  const fake = await fakeScheduler(contract, name, (change) => then(docker, change));
  used.push(fake);
  return staged(fake.address, docker, token);
}

/** As Nomad does it: what is deregistered ends, and what is registered gets an allocation of its own. */
function follow(docker: FakeDocker, change: string): void {
  docker.clear();
  if (change.startsWith('POST')) docker.put(`cache-${SECOND}`, { pid: 42 });
}

describe('jobs of Nomad', () => {
  it('are those of this node and namespace, if they run here or ran here last', async () => {
    const { docker, driver } = await stage('what is here', undefined, TOKEN);
    docker.put(`cache-${FIRST}`, { pid: 4711 });
    const common = { engine: 'nomad', ports: [], created_at: SUBMITTED };
    expect(await driver.list()).toEqual([
      { ...common, id: 'cache', name: 'cache', state: 'running', image: 'localhost/app:1', pid: 4711 },
      { ...common, id: 'nightly', name: 'nightly', state: 'running', image: '', pid: 0 },
      { ...common, id: 'idle', name: 'idle', state: 'stopped', image: 'localhost/app:1', pid: 0 },
    ]);
  });

  it('are described by their container, without what Nomad put into it', async () => {
    const { docker, driver } = await stage('what is here', undefined, TOKEN);
    docker.put(`cache-${FIRST}`, {
      pid: 4711,
      labels: { 'com.hashicorp.nomad.alloc_id': FIRST, team: 'shop' },
      env: ['NOMAD_ALLOC_ID=x', 'MODE=fast'],
      binds: ['/alloc', '/local', '/secrets', '/data'],
    });
    const { summary, specification, handle, trees } = await driver.describe('cache');
    expect(specificationSchema.parse(specification)).toEqual(specification);
    expect(specification).toMatchObject({ engine: 'nomad', name: 'cache', labels: { team: 'shop' } });
    expect(Object.keys(specification.labels)).toEqual(['team']);
    expect(specification.env.toSorted()).toEqual(['MODE=fast', 'PATH=/bin']);
    expect(specification.mounts.map(({ destination }) => destination)).toEqual(['/data']);
    expect([summary.pid, handle, trees]).toEqual([4711, HANDLE, []]);
  });

  it('are described without a container, too, so that they can be started again', async () => {
    const { docker, driver } = await stage('what is here', undefined, TOKEN);
    docker.put(`cache-${FIRST}`, { pid: 4711 });
    const { summary, specification } = await driver.describe('idle');
    expect(summary.state).toBe('stopped');
    expect(specificationSchema.parse(specification)).toEqual(specification);
  });

  it('are refused with the reason where it could not be said what moves', async () => {
    const two = await stage('two at once');
    two.docker.put(`cache-${FIRST}`, { pid: 4711 });
    await expect(two.driver.describe('cache')).rejects.toMatchObject({
      code: 'UMS_E_SPECIFICATION',
      message: 'cache has 2 allocations, and only a service of one can move',
      state: 'Nothing was changed.',
    });
    const { driver } = await stage('another task driver');
    await expect(driver.describe('cache')).rejects.toThrow(/runs by the task driver podman/);
  });

  it.each<[string, (job: Job) => Partial<Job>, RegExp]>([
    [
      'three allocations',
      ({ TaskGroups: groups }) => ({ TaskGroups: groups?.map((each) => ({ ...each, Count: 3 })) }),
      /3 allocations/,
    ],
    [
      'two groups',
      ({ TaskGroups: groups }) => ({ TaskGroups: [...(groups ?? []), ...(groups ?? [])] }),
      /2 task groups/,
    ],
    [
      'two tasks',
      ({ TaskGroups: groups }) => ({
        TaskGroups: groups?.map((each) => ({ ...each, Tasks: [...(each.Tasks ?? []), ...(each.Tasks ?? [])] })),
      }),
      /2 tasks/,
    ],
    ['no group', () => ({ TaskGroups: null }), /0 task groups/],
    ['another type', () => ({ Type: 'batch' }), /a job of type batch/],
    ['a name with a slash', () => ({ ID: 'shop/cache' }), /no name for a service/],
  ])('with %s are refused', (_name, edit, why) => {
    const job = theJob();
    expect(whyNotMovable(job)).toBeUndefined();
    expect(whyNotMovable({ ...job, ...edit(job) })?.message).toMatch(why);
  });

  it('are stopped, and started again as the job that they were', async () => {
    const { docker, driver } = await stage('stop and start', follow);
    docker.put(`cache-${FIRST}`, { pid: 4711 });
    expect(await driver.state(HANDLE)).toBe('running');
    await driver.stop(HANDLE);
    expect(await driver.state(HANDLE)).toBe('stopped');
    await driver.start(HANDLE);
    expect(await driver.state(HANDLE)).toBe('running');
  });

  it('are begun anew when their task has ended, though their policies would not', async () => {
    const { driver } = await stage('one that has ended', follow);
    await driver.start(HANDLE);
    expect(await driver.state(HANDLE)).toBe('running');
  });

  it('are not overwritten when somebody else has changed them meanwhile', async () => {
    const { driver } = await stage('changed meanwhile');
    await expect(driver.start(HANDLE)).rejects.toMatchObject({
      code: 'UMS_E_ENGINE',
      fault: 'user',
      message: expect.stringMatching(/Somebody else changed the job cache/),
      state: 'It was left as they want it.',
    });
  });

  it('say where they run when it is not here that they were started', async () => {
    const { driver } = await stage('placed elsewhere');
    await expect(driver.start(HANDLE)).rejects.toThrow(/did not start: it runs on the node beta now/);
  });

  it('are removed whole, and once', async () => {
    const { docker, driver } = await stage('remove', follow);
    docker.put(`cache-${FIRST}`, { pid: 4711 });
    await driver.remove(HANDLE);
    expect(await driver.state(HANDLE)).toBe('absent');
    await driver.remove(HANDLE);
    await driver.discard(HANDLE);
    await expect(driver.stop(HANDLE)).rejects.toMatchObject({ code: 'UMS_E_SERVICE_GONE' });
    await expect(driver.start(HANDLE)).rejects.toMatchObject({ code: 'UMS_E_SERVICE_GONE' });
  });

  it('have not ended while their container runs on', async () => {
    const { docker, driver } = await stage('remove');
    docker.put(`cache-${FIRST}`, { pid: 4711 });
    await expect(driver.remove(HANDLE)).rejects.toThrow(/allocation of cache has not ended/);
  });

  it('are never dumped, restored or made of anything', async () => {
    const { driver } = staged('http://127.0.0.1:9', new FakeDocker());
    for (const refused of [driver.create, driver.freeze, driver.checkpoint, driver.restore, driver.restartFresh]) {
      await expect(refused()).rejects.toMatchObject({ code: 'UMS_E_APPROACH', detail: driver.whyNotLazy });
    }
  });
});

function theJob(): Job {
  const found = contract.find(({ request }) => request.path === '/v1/job/cache?namespace=default');
  return jobSchema.parse(found?.response.body);
}

function nobody(): never {
  throw new Error('nobody may be asked');
}

describe('a Nomad', () => {
  it('that is not installed costs no request and has nothing', async () => {
    const driver = new SchedulerDriver(
      new NomadScheduler({ docker: new FakeDocker(), api: nobody, installed: () => Promise.resolve(false) }),
    );
    expect(await driver.list()).toEqual([]);
    expect(await driver.fingerprint()).toMatchObject({ available: false, problem: 'Nomad is not here' });
  });

  it('says its version, or that it runs nothing here', async () => {
    const { driver } = await stage('itself');
    expect(await driver.fingerprint()).toMatchObject({ engine: 'nomad', available: true, version: '1.9.3' });
    const alone = await stage('a server alone');
    expect(await alone.driver.fingerprint()).toMatchObject({
      available: false,
      problem: expect.stringMatching(/a server alone/),
    });
    expect(await alone.driver.list()).toEqual([]);
  });

  it.each(['rights', 'no token of theirs'])('that does not let the agent in (%s) is said so', async (name) => {
    const { driver } = await stage(name);
    await expect(driver.list()).rejects.toMatchObject({
      code: 'UMS_E_ENGINE',
      fault: 'user',
      state: 'Nothing was changed.',
      mend: expect.stringMatching(/NOMAD_TOKEN/),
    });
  });

  it.each(['strange', 'no json'])('whose answer is %s is not believed', async (name) => {
    const { driver } = await stage(name);
    await expect(driver.list()).rejects.toThrow(/answer to \/v1\/agent\/self is not what this version of ums knows/);
  });

  it('that does not answer is waited for only so long', async () => {
    const silent = await silentScheduler();
    const { driver } = staged(silent.address, new FakeDocker(), undefined, SHORT_MS);
    await expect(driver.list()).rejects.toThrow(/Nomad does not answer at http.*: nothing came within 700 ms/);
    silent.close();
  });

  it('that is not there is said so', async () => {
    const silent = await silentScheduler();
    silent.close();
    const { driver } = staged(silent.address, new FakeDocker());
    await expect(driver.list()).rejects.toMatchObject({
      code: 'UMS_E_ENGINE',
      mend: expect.stringMatching(/NOMAD_ADDR/),
    });
  });

  it('is where its own variables say', () => {
    expect(readAccess({})).toEqual({ address: 'http://127.0.0.1:4646', token: undefined, namespace: 'default' });
    const env = { NOMAD_ADDR: 'https://nomad.example:4646/', NOMAD_TOKEN: TOKEN, NOMAD_NAMESPACE: 'shop' };
    expect(readAccess(env)).toEqual({ address: 'https://nomad.example:4646', token: TOKEN, namespace: 'shop' });
    expect(() => readAccess({ NOMAD_ADDR: 'unix:///run/nomad.sock' })).toThrow(/NOMAD_ADDR is no address/);
    expect(() => readAccess({ NOMAD_NAMESPACE: '*' })).toThrow(/all namespaces/);
  });
});

describe('a job that is made for a capsule', () => {
  it('is new, and waited for', async () => {
    const { docker, api, scheduler } = await stage('launch');
    docker.put(`cache-${FIRST}`, { pid: 4711 });
    expect(await api.ownNode()).toMatchObject({ Datacenter: 'dc1', NodePool: 'default' });
    await runJob(NEW_JOB, api, scheduler, SHORT_MS * 4);
  });

  it('is removed again when it does not start, with Nomad’s reason', async () => {
    const { api, scheduler } = await stage('launch that fails');
    await expect(runJob(NEW_JOB, api, scheduler, SHORT_MS)).rejects.toMatchObject({
      message: expect.stringMatching(/does not allow the following capabilities: sys_admin/),
      state: 'It was removed again.',
    });
  });

  it('leaves one of its name as it is', async () => {
    const { api, scheduler } = await stage('name taken');
    await expect(runJob(NEW_JOB, api, scheduler)).rejects.toMatchObject({ code: 'UMS_E_NAME_TAKEN' });
  });
});
