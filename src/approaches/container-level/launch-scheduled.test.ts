import { totalmem } from 'node:os';
import { describe, expect, it } from 'vitest';
import { granted } from './launch.ts';
import { capsuleApp, capsuleJob } from './launch-scheduled.ts';
import { CAPABILITIES, SECURITY_OPTIONS } from './needs.ts';

const ARGS = ['--name', 'm-1', '--peer-address', '192.0.2.10'];
const MEMORY_MIB = Math.floor(totalmem() / 2 ** 20);

describe('an empty capsule', () => {
  it('is a job of Nomad’s on one node, with what a capsule needs, that is not begun anew', () => {
    const place = { node: '5f1c2a3e', datacenter: 'dc1', pool: 'edge', namespace: 'shop' };
    const image = `sha256:${'a'.repeat(64)}`;
    const job = capsuleJob({ name: 'cache', args: ARGS, image, grants: granted(['MKNOD']) }, place);
    expect(job).toMatchObject({
      ID: 'cache',
      Namespace: 'shop',
      Type: 'service',
      Datacenters: ['dc1'],
      NodePool: 'edge',
    });
    expect(job).toHaveProperty('Constraints', [{ LTarget: '${node.unique.id}', RTarget: '5f1c2a3e', Operand: '=' }]);
    expect(job).toHaveProperty('TaskGroups.length', 1);
    expect(job).toHaveProperty('TaskGroups.0.Count', 1);
    expect(job).toHaveProperty('TaskGroups.0.RestartPolicy', { Attempts: 0, Mode: 'fail' });
    expect(job).toHaveProperty('TaskGroups.0.ReschedulePolicy', { Attempts: 0, Unlimited: false });
    expect(job).toHaveProperty('TaskGroups.0.Tasks.0.Driver', 'docker');
    expect(job).toHaveProperty('TaskGroups.0.Tasks.0.Config', {
      image,
      args: ARGS,
      network_mode: 'host',
      cap_add: [...CAPABILITIES, 'MKNOD'],
      security_opt: SECURITY_OPTIONS,
      memory_hard_limit: MEMORY_MIB,
    });
    const older = capsuleJob({ name: 'c', args: [], image, grants: [] }, { ...place, pool: undefined });
    expect(older).not.toHaveProperty('NodePool');
  });

  it('is an app of Marathon’s on one host, with what a capsule needs, and never two', () => {
    const app = capsuleApp({ args: ARGS, image: 'ums-capsule:latest', grants: ['SYS_ADMIN'] }, 'alpha');
    expect(app).toMatchObject({
      args: ARGS,
      instances: 1,
      networks: [{ mode: 'host' }],
      portDefinitions: [],
      constraints: [['hostname', 'CLUSTER', 'alpha']],
      backoffSeconds: 3600,
      maxLaunchDelaySeconds: 3600,
      unreachableStrategy: 'disabled',
      upgradeStrategy: { minimumHealthCapacity: 0, maximumOverCapacity: 0 },
    });
    expect(app).toHaveProperty('container.type', 'DOCKER');
    expect(app).toHaveProperty('container.docker.parameters', [
      { key: 'cap-add', value: 'SYS_ADMIN' },
      { key: 'security-opt', value: 'seccomp=unconfined' },
      { key: 'security-opt', value: 'apparmor=unconfined' },
      { key: 'memory', value: `${MEMORY_MIB}m` },
    ]);
  });
});
