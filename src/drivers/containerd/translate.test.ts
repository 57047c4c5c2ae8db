import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import { type Specification, specificationSchema } from '../specification.ts';
import { decodeOptions, withRuntime } from './client.ts';
import { parseConfig, specificationOf, stdioOf, textOf } from './describe.ts';
import { heldSpec, isHeld, specOf } from './hold.ts';
import { lossesOf, refuseUnmovable, upperOf } from './losses.ts';
import { type Config, type Container, containerSchema, type Task } from './schema.ts';

/**
 * Each fixture is real: what containerd 1.7.24 said of a container that `ctr` made (`original`), and of the one that the
 * driver made from what it had read of that (`copy`).
 */
const bytesSchema = z
  .object({ type_url: z.string(), value: z.string() })
  .transform(({ type_url, value }) => ({ type_url, value: new Uint8Array(Buffer.from(value, 'base64')) }));
const recordSchema = z
  .looseObject({
    spec: bytesSchema,
    runtime: z.object({ name: z.string(), options: bytesSchema.optional() }),
    extensions: z.record(z.string(), bytesSchema),
  })
  .transform((record) => containerSchema.parse(record));
const fixtureSchema = z.object({
  name: z.string(),
  image: specificationSchema.shape.image,
  original: recordSchema,
  copy: recordSchema,
});
const fixtures = readFileSync(new URL('record.fixtures.jsonl', import.meta.url), 'utf8')
  .split('\n')
  .filter((line) => line !== '')
  .map((line) => fixtureSchema.parse(JSON.parse(line)));
const named = fixtures.map((fixture) => [fixture.name, fixture] as const);

function byName(name: string): z.infer<typeof fixtureSchema> {
  const found = fixtures.find((fixture) => fixture.name === name);
  if (found === undefined) throw new Error(`no fixture ${name}`);
  return found;
}

function specify(name: string): Specification {
  const { original, image } = byName(name);
  return specificationOf(original, image, { kind: 'null' });
}

describe('a record of containerd to specification and back', () => {
  it('has enough fixtures', () => {
    expect(fixtures.length).toBeGreaterThanOrEqual(18);
  });

  it.each(named)('%s is lossless, to the byte', (_name, { original, copy, image }) => {
    const specification = specificationOf(original, image, { kind: 'null' });
    expect(specificationSchema.parse(specification)).toEqual(specification);
    const { created_at: _before, ...wanted } = original;
    const { created_at: _after, ...found } = copy;
    expect(found).toEqual(wanted);
    expect(specificationOf(copy, image, { kind: 'null' })).toEqual(specification);
  });

  it('says in no engine’s words what the configuration says in containerd’s', () => {
    expect(specify('plain')).toMatchObject({
      engine: 'containerd',
      command: ['memhog', '4'],
      network: { mode: 'private' },
      restartPolicy: { name: 'no' },
      capabilities: { add: [], drop: [] },
      privileged: false,
      securityOptions: ['no-new-privileges', 'seccomp=unconfined'],
      shmSize_bytes: 65_536 * 1024,
      stopSignal: 'SIGTERM',
      resources: {},
    });
    expect(specify('host network').network.mode).toBe('host');
    expect(specify('environment')).toMatchObject({
      env: expect.arrayContaining(['A=b c', 'EMPTY=']),
      workingDir: '/tmp',
    });
    expect(specify('labels')).toMatchObject({ labels: { owner: 'nobody=x' }, annotations: { 'a.b/c': 'd e' } });
    expect(specify('restart policy').restartPolicy).toEqual({ name: 'on-failure', retries: 3 });
    expect(specify('user').user).toBe('100:100');
    expect(specify('hostname').hostname).toBe('somewhere');
    expect(specify('read only').readOnlyRootfs).toBe(true);
    expect(specify('privileged').privileged).toBe(true);
    expect(specify('capabilities').capabilities).toEqual({ add: ['CAP_NET_ADMIN'], drop: ['CAP_MKNOD'] });
    expect(specify('seccomp').securityOptions).toEqual(['no-new-privileges']);
    expect(specify('device').devices).toEqual([
      { source: '/dev/net/tun', destination: '/dev/net/tun', permissions: 'rwm' },
    ]);
    expect(specify('limits').resources).toEqual({ memory_bytes: 2 ** 28, cpuQuota_us: 25_000, cpuPeriod_us: 50_000 });
    expect(specify('processor share').resources).toEqual({ cpuShares: 512 });
  });

  it('asks about directories of the host, and takes files that every host has from each', () => {
    const binds = specify('mounts').mounts.filter((mount) => mount.kind === 'bind');
    expect(binds.map(({ source, transfer }) => [source, transfer])).toEqual([
      ['/srv', 'undecided'],
      ['/etc/hostname', 'expect'],
    ]);
    const hosts = specify('host network').mounts.filter((mount) => mount.kind === 'bind');
    expect(hosts.map(({ transfer }) => transfer)).toEqual(['expect', 'expect']);
  });

  it('tells the runtime of one task another path, and nothing else that a restore would not take', () => {
    const options = byName('runtime options').original.runtime?.options;
    const told = decodeOptions(withRuntime(options, '/run/x/runtime'));
    expect(told).toEqual({ ...decodeOptions(options), binary_name: '/run/x/runtime', no_new_keyring: false });
    expect(told.root).toBe('/run/other-runc');
  });
});

describe('a container that is held', () => {
  it('cannot start, and has its configuration back to the byte', () => {
    const { original } = byName('plain');
    const spec = specOf(original);
    const held: Container = { ...original, spec: heldSpec(spec) };
    expect([isHeld(original), isHeld(held)]).toEqual([false, true]);
    expect(parseConfig(textOf(held.spec ?? spec), 'x').hooks?.['createRuntime']).toHaveLength(1);
    expect(textOf(specOf(held))).toBe(textOf(spec));
    expect(specificationOf(held, byName('plain').image, { kind: 'null' })).toEqual(specify('plain'));
  });
});

const OVERLAY = [{ type: 'overlay', source: 'overlay', target: '', options: ['index=off', 'upperdir=/s/2/fs'] }];

function judged(edit: (seen: { container: Container; config: Config; task: Task }) => void, mounts = OVERLAY) {
  const { original } = structuredClone(byName('plain'));
  const task: Task = { id: 'x', pid: 0, status: 'RUNNING', stdin: '', stdout: '', stderr: '', terminal: false };
  const seen = { container: original, config: parseConfig(textOf(specOf(original)), 'x'), task };
  edit(seen);
  return refuseUnmovable({ ...seen, mounts });
}

describe('what cannot be kept', () => {
  it('is said', () => {
    expect(lossesOf({ kind: 'fifo', stdin: true }).join('\n')).toMatch(/attach again/);
    expect(lossesOf({ kind: 'uri', uri: 'binary:///bin/logger?x=y' }).join('\n')).toMatch(/log program/);
    expect(lossesOf({ kind: 'uri', uri: 'file:///var/log/x' }).join('\n')).toMatch(/16 MiB/);
    expect(lossesOf({ kind: 'null' })).toHaveLength(1);
  });

  it('is refused where nothing would be left of the service', async () => {
    await expect(judged(() => undefined)).resolves.toBeUndefined();
    const refusals: [(seen: { container: Container; config: Config; task: Task }) => void, RegExp][] = [
      [({ container }) => (container.runtime = { name: 'io.containerd.kata.v2' }), /kata/],
      [({ container }) => (container.runtime = byName('runtime binary').original.runtime), /^$/],
      [({ container }) => (container.sandbox = 'pod'), /sandbox/],
      [({ container }) => (container.snapshot_key = ''), /does not manage/],
      [({ config }) => (config.process.terminal = true), /terminal/],
      [
        ({ config }) => (config.linux.namespaces = config.linux.namespaces.filter(({ type }) => type !== 'pid')),
        /process id/,
      ],
      [({ config }) => config.linux.namespaces.push({ type: 'user', path: '' }), /user namespace/],
      [({ config }) => config.linux.namespaces.push({ type: 'network', path: '/run/netns/x' }), /joins the network/],
      [({ config }) => (config.hooks = { createRuntime: [{ path: '/x' }] }), /hooks/],
      [({ config }) => (config.linux.cgroupsPath = ''), /no control group/],
      [({ config }) => (config.linux.cgroupsPath = '/other'), /lacks its name/],
      [({ task }) => (task.stdout = 'npipe:///x'), /output goes to/],
    ];
    for (const [edit, reason] of refusals) {
      if (reason.source === '^$') await expect(judged(edit)).resolves.toBeUndefined();
      else await expect(judged(edit)).rejects.toThrow(reason);
    }
    await expect(
      judged(() => undefined, [{ ...OVERLAY[0], type: 'btrfs', source: '', target: '', options: [] }]),
    ).rejects.toThrow(/snapshotter/);
  });

  it('knows where a task’s output goes', () => {
    const task: Task = { id: 'x', pid: 1, status: 'RUNNING', stdin: '', stdout: '', stderr: '', terminal: false };
    expect(stdioOf(undefined)).toEqual({ kind: 'null' });
    expect(stdioOf(task)).toEqual({ kind: 'null' });
    expect(stdioOf({ ...task, stdout: 'file:///l', stderr: 'file:///l' })).toEqual({ kind: 'uri', uri: 'file:///l' });
    const pipes = { stdin: '/f/i', stdout: '/f/o', stderr: '/f/e' };
    expect(stdioOf({ ...task, ...pipes })).toEqual({ kind: 'fifo', stdin: true });
    expect(upperOf(OVERLAY)).toBe('/s/2/fs');
  });
});
