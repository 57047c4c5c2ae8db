import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import { type Specification, specificationSchema } from '../specification.ts';
import { createBody } from './create-body.ts';
import { nameOf, specificationOf } from './describe.ts';
import { lossesOf, refuseUnmovable } from './losses.ts';
import { type Inspect, inspectSchema, type Volume, volumeSchema } from './schema.ts';

/**
 * Each fixture is real: what Docker 26.1.5 said of a container that a person made (`original`), and of the container that it
 * made from the body translated from that (`copy`).
 */
const fixtureSchema = z.object({
  name: z.string(),
  original: inspectSchema,
  volumes: z.array(volumeSchema),
  copy: inspectSchema,
  copyVolumes: z.array(volumeSchema),
});
const fixtures = readFileSync(new URL('inspect.fixtures.jsonl', import.meta.url), 'utf8')
  .split('\n')
  .filter((line) => line !== '')
  .map((line) => fixtureSchema.parse(JSON.parse(line)));

function specify(inspect: Inspect, volumes: readonly Volume[]): Specification {
  const image: Specification['image'] = { kind: 'image', id: inspect.Image, names: ['memhog:latest'], size_bytes: 1 };
  return specificationOf(inspect, image, new Map(volumes.map((volume) => [volume.Name, volume])));
}

/** The second container found the volumes of the first gone, and anonymous ones have names of Docker's. */
function comparable(specification: Specification): unknown {
  return {
    ...specification,
    env: specification.env.toSorted(),
    mounts: specification.mounts
      .map((mount) => (mount.kind === 'volume' && mount.anonymous ? { ...mount, name: 'anonymous' } : mount))
      .toSorted((left, right) => left.destination.localeCompare(right.destination)),
  };
}

function byName(name: string): z.infer<typeof fixtureSchema> {
  const found = fixtures.find((fixture) => fixture.name === name);
  if (found === undefined) throw new Error(`no fixture ${name}`);
  return found;
}

describe('docker inspect to specification and back', () => {
  it('has enough fixtures', () => {
    expect(fixtures.length).toBeGreaterThanOrEqual(12);
  });

  it.each(fixtures.map((fixture) => [fixture.name, fixture] as const))('%s is lossless', (_name, fixture) => {
    const specification = specify(fixture.original, fixture.volumes);
    expect(specificationSchema.parse(specification)).toEqual(specification);
    expect(comparable(specify(fixture.copy, fixture.copyVolumes))).toEqual(comparable(specification));
  });

  it.each(fixtures.map((fixture) => [fixture.name, fixture] as const))('%s has every mount', (_name, fixture) => {
    for (const inspect of [fixture.original, fixture.copy]) {
      const told = specify(inspect, fixture.volumes).mounts.map(({ destination }) => destination);
      const real = inspect.Mounts.map(({ Destination }) => Destination);
      expect(told.toSorted()).toEqual([...real, ...Object.keys(inspect.HostConfig.Tmpfs)].toSorted());
    }
  });

  it('knows the limits that the recording kernel had none of', () => {
    const { original } = byName('plain');
    const limits = {
      Memory: 2 ** 28,
      MemorySwap: 2 ** 29,
      MemoryReservation: 2 ** 26,
      MemorySwappiness: 10,
      CpuShares: 512,
      NanoCpus: 1_500_000_000,
      CpuPeriod: 50_000,
      CpuQuota: 25_000,
      CpusetCpus: '0',
      CpusetMems: '0',
      PidsLimit: 100,
      CgroupParent: '/mine',
    };
    const specification = specify({ ...original, HostConfig: { ...original.HostConfig, ...limits } }, []);
    expect(specificationSchema.parse(specification)).toEqual(specification);
    expect(createBody(specification, 'memhog')['HostConfig']).toMatchObject(limits);
  });

  it('names the runtime that restores, and the image by the name it has here', () => {
    const body = createBody(specify(byName('plain').original, []), 'memhog:latest');
    expect(body).toMatchObject({ Image: 'memhog:latest', HostConfig: { Runtime: 'ums' } });
  });
});

function judged(edit: (inspect: Inspect) => void): () => void {
  const inspect = structuredClone(byName('plain').original);
  edit(inspect);
  return () => refuseUnmovable(inspect, ['name=seccomp,profile=builtin', 'name=cgroupns']);
}

describe('what cannot be kept', () => {
  it('is said', () => {
    const { original } = byName('plain');
    const host = { ...original.HostConfig, Links: ['/other:/fixture/other'], PublishAllPorts: true };
    const said = lossesOf({ ...original, HostConfig: host }, new Map()).join('\n');
    expect(said).toMatch(/links/);
    expect(said).toMatch(/exposed ports/);
    expect(nameOf(original)).toBe('fixture');
  });

  it('is refused where nothing would be left of the service', () => {
    expect(judged(() => undefined)).not.toThrow();
    expect(judged((inspect) => (inspect.HostConfig.NetworkMode = 'container:abc'))).toThrow(/namespace/);
    expect(judged((inspect) => (inspect.HostConfig.PidMode = 'host'))).toThrow(/process id/);
    expect(judged((inspect) => (inspect.HostConfig.IpcMode = 'shareable'))).toThrow(/shm/);
    expect(judged((inspect) => (inspect.HostConfig.Runtime = 'kata'))).toThrow(/kata/);
    expect(judged((inspect) => (inspect.HostConfig.Runtime = 'ums'))).not.toThrow();
    expect(judged((inspect) => (inspect.GraphDriver.Name = 'btrfs'))).toThrow(/btrfs/);
    expect(judged((inspect) => (inspect.GraphDriver.Data = {}))).toThrow(/image store/);
    const swarm = { 'com.docker.swarm.service.name': 'web' };
    expect(judged((inspect) => (inspect.Config.Labels = swarm))).toThrow(
      /web of Docker Swarm, which would make another/,
    );
    const mesos = { MESOS_TASK_ID: 'prod_web.instance-5c1d' };
    expect(judged((inspect) => (inspect.Config.Labels = mesos))).toThrow(
      /prod_web\S+ of Mesos, which would make another/,
    );
    const { original } = byName('plain');
    expect(() => refuseUnmovable(original, ['name=seccomp,profile=builtin', 'name=userns'])).toThrow(/user namespace/);
  });
});
