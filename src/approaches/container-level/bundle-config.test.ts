import { expect, it } from 'vitest';
import { configSchema } from '#src/drivers/runc/schema.ts';
import { z } from 'zod';
import { type BundleRequest, bundleConfig, capabilitiesOf } from './bundle-config.ts';
import { inheritedEnv } from './prepare.ts';
import { runAs } from './settings.ts';

const detail = z.object({
  process: z.object({ capabilities: z.object({ bounding: z.array(z.string()), effective: z.array(z.string()) }) }),
  linux: z.object({ cgroupsPath: z.string() }),
});

function request(changes: Partial<BundleRequest>): BundleRequest {
  return {
    run: runAs({ Cmd: ['/bin/app'] }, {}),
    account: { uid: 0, gid: 0, additionalGids: [], home: '/root' },
    asked: {},
    hostname: 'box',
    capabilities: new Set(['CHOWN', 'KILL', 'SYS_ADMIN', 'NET_ADMIN']),
    cgroup: '/service',
    annotations: {},
    ...changes,
  };
}

const of = (changes: Partial<BundleRequest>) => detail.parse(bundleConfig(request(changes))).process.capabilities;

it('is a bundle that the runc driver can move: no terminal, its own processes, the capsule’s network', () => {
  const config = configSchema.parse(bundleConfig(request({})));
  expect(config.process.terminal).toBe(false);
  expect(config.process.env).toContain('HOME=/root');
  expect(config.linux.namespaces.map((each) => each.type).toSorted()).toEqual(['cgroup', 'ipc', 'mount', 'pid', 'uts']);
  expect(config.root).toEqual({ path: 'rootfs', readonly: false });
});

it('gives what engines give, as far as the capsule has it, and more only when asked', () => {
  expect(of({}).bounding).toEqual(['CAP_CHOWN', 'CAP_KILL']);
  expect(of({ asked: { capabilities: { add: ['cap_net_admin', 'SYS_TIME'], drop: ['KILL'] } } }).bounding).toEqual([
    'CAP_CHOWN',
    'CAP_NET_ADMIN',
  ]);
  expect(of({ asked: { capabilities: { add: [], drop: ['ALL'] } } }).bounding).toEqual([]);
  const account = { uid: 5, gid: 5, additionalGids: [], home: '/' };
  expect(of({ account })).toEqual({ bounding: ['CAP_CHOWN', 'CAP_KILL'], effective: [] });
});

it('binds paths of the capsule', () => {
  const asked = { mounts: [{ kind: 'bind' as const, source: '/data', destination: '/var/data', readOnly: true }] };
  expect(configSchema.parse(bundleConfig(request({ asked }))).mounts.at(-1)).toEqual({
    type: 'bind',
    source: '/data',
    destination: '/var/data',
    options: ['rbind', 'rprivate', 'ro'],
  });
});

it('reads capabilities from the kernel’s mask', () => {
  expect(capabilitiesOf('0000000000000000').size).toBe(0);
  expect([...capabilitiesOf('0000010000200001')]).toEqual(['CHOWN', 'SYS_ADMIN', 'CHECKPOINT_RESTORE']);
});

it('hands on the environment that the engine gave, but not what is the capsule’s own', () => {
  const environ = 'PATH=/bin\0HOME=/root\0COLOUR=blue\0UMS_CAPSULE_NAME=a\0HOSTNAME=b\0NODE_OPTIONS=--x\0rubbish\0';
  expect(inheritedEnv(environ)).toEqual(['COLOUR=blue', 'NODE_OPTIONS=--x']);
});
