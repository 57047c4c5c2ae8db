import * as fc from 'fast-check';
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import { type Specification, specificationSchema } from '../specification.ts';
import { createArguments } from './create-args.ts';
import { specificationOf } from './describe.ts';
import { lossesOf, refuseUnmovable } from './losses.ts';
import { type Inspect, inspectSchema, type Volume, volumeSchema } from './schema.ts';

/**
 * Each fixture is real: what Podman 5.4.2 said of a container (`original`), and of the container that it made from the
 * arguments translated from that (`copy`).
 */
const fixtureSchema = z.object({
  name: z.string(),
  original: inspectSchema,
  volumes: z.array(volumeSchema),
  sysctls: z.record(z.string(), z.string()),
  devices: z.array(z.string()),
  copy: inspectSchema,
  copyVolumes: z.array(volumeSchema),
});
const fixtures = readFileSync(new URL('inspect.fixtures.jsonl', import.meta.url), 'utf8')
  .split('\n')
  .filter((line) => line !== '')
  .map((line) => fixtureSchema.parse(JSON.parse(line)));

const IMAGE = 'localhost/tick:1';

function volumeMap(volumes: readonly Volume[]): Map<string, Volume> {
  return new Map(volumes.map((volume) => [volume.Name, volume]));
}

function specify(fixture: z.infer<typeof fixtureSchema>, inspect: Inspect, volumes: readonly Volume[]): Specification {
  return specificationOf(inspect, {
    image: { kind: 'image', id: `sha256:${inspect.Image}`, names: [IMAGE], size_bytes: 1 },
    volumes: volumeMap(volumes),
    sysctls: fixture.sysctls,
    devices: fixture.devices,
  });
}

/** Podman orders environment and mounts as it likes, names anonymous volumes itself, and sets HOSTNAME at the start at last. */
function comparable(specification: Specification): unknown {
  return {
    ...specification,
    env: specification.env.filter((entry) => !entry.startsWith('HOSTNAME=')).toSorted(),
    mounts: specification.mounts
      .map((mount) => (mount.kind === 'volume' && mount.anonymous ? { ...mount, name: 'anonymous' } : mount))
      .toSorted((left, right) => left.destination.localeCompare(right.destination)),
  };
}

describe('podman inspect to specification and back', () => {
  it('has enough fixtures', () => {
    expect(fixtures.length).toBeGreaterThanOrEqual(12);
  });

  it.each(fixtures.map((fixture) => [fixture.name, fixture] as const))('%s is lossless', (_name, fixture) => {
    const specification = specify(fixture, fixture.original, fixture.volumes);
    expect(specificationSchema.parse(specification)).toEqual(specification);
    expect(comparable(specify(fixture, fixture.copy, fixture.copyVolumes))).toEqual(comparable(specification));
  });

  it.each(fixtures.map((fixture) => [fixture.name, fixture] as const))(
    '%s is made by the same command',
    (name, fixture) => {
      // The recorded container was made before devices were read from its configuration.
      const specification = specify({ ...fixture, devices: [] }, fixture.original, fixture.volumes);
      const command = fixture.copy.Config.CreateCommand;
      expect(command.slice(0, 4), name).toEqual(['podman', '--runtime', 'runc', 'create']);
      expect(createArguments(specification, { image: IMAGE })).toEqual(command.slice(4));
    },
  );
});

function byName(name: string): z.infer<typeof fixtureSchema> {
  const found = fixtures.find((fixture) => fixture.name === name);
  if (found === undefined) throw new Error(`no fixture ${name}`);
  return found;
}

function judged(name: string, edit: (inspect: Inspect) => void): () => void {
  const inspect = structuredClone(byName(name).original);
  edit(inspect);
  return () => refuseUnmovable(inspect);
}

describe('what cannot be kept', () => {
  it('is said', () => {
    const { original } = byName('time');
    expect(lossesOf(original, new Map()).join('\n')).toMatch(/run limit/);
    const fixed = {
      ...original,
      Config: { ...original.Config, CreateCommand: ['podman', 'run', '--ip=10.0.0.9', IMAGE] },
    };
    expect(lossesOf(fixed, new Map()).join('\n')).toMatch(/fixed IPv4 address/);
  });

  it('is refused where nothing would be left of the service', () => {
    expect(judged('plain', () => undefined)).not.toThrow();
    expect(judged('plain', (inspect) => (inspect.HostConfig.NetworkMode = 'container:abc'))).toThrow(/namespace/);
    expect(judged('plain', (inspect) => (inspect.Pod = 'abc'))).toThrow(/pod/);
    expect(judged('plain', (inspect) => (inspect.OCIRuntime = 'crun'))).toThrow(/crun/);
    expect(judged('plain', (inspect) => (inspect.HostConfig.PidMode = 'host'))).toThrow(/process id/);
    const nomad = { 'com.hashicorp.nomad.alloc_id': 'abc' };
    expect(judged('plain', (inspect) => (inspect.Config.Labels = nomad))).toThrow(/Nomad, which would make another/);
  });
});

describe('arguments of podman create', () => {
  const base = fixtures[0];
  const word = fc.string({ minLength: 1, maxLength: 20 });
  it('never let a value of the service become an option', () => {
    if (base === undefined) throw new Error('no fixtures');
    const specification = specify(base, base.original, base.volumes);
    fc.assert(
      fc.property(fc.array(word), fc.dictionary(word, word), fc.array(word), (command, labels, env) => {
        const args = createArguments({ ...specification, command, labels, env }, { image: IMAGE });
        // Everything after the image is the program's; before it, options and values alternate or stand alone.
        expect(args.slice(args.length - command.length)).toEqual(command);
        expect(args[args.length - command.length - 1]).toBe(IMAGE);
        for (const [name, value] of Object.entries(labels)) {
          const at = args.findIndex((arg, index) => arg === `${name}=${value}` && args[index - 1] === '--label');
          expect(at).toBeGreaterThan(0);
        }
        expect(
          args.filter((arg, index) => args[index - 1] === '--env' && env.includes(arg)).length,
        ).toBeGreaterThanOrEqual(new Set(env).size);
      }),
    );
  });
});
