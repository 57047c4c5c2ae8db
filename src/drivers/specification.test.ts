import { describe, expect, it } from 'vitest';
import { engineSchema, hostEngineSchema } from './specification.ts';

const isEngine = (name: string): boolean => engineSchema.safeParse(name).success;

describe('the name of an engine', () => {
  it('is one that ums knows, or says that its driver comes from outside', () => {
    expect(['podman', 'init', 'x-minibox'].filter(isEngine)).toEqual(['podman', 'init', 'x-minibox']);
    expect(
      ['', 'minibox', 'x-', 'x-A', 'x-a/../b', 'x-a\nb', `x-${'a'.repeat(31)}`, 'podmanx-a'].filter(isEngine),
    ).toEqual([]);
  });

  it('can be asked for only if it is one of a host that ums knows', () => {
    expect(hostEngineSchema.options).toEqual([
      'runc',
      'podman',
      'docker',
      'containerd',
      'kubernetes',
      'swarm',
      'nomad',
      'marathon',
    ]);
  });
});
