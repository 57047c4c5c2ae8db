import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { z } from 'zod';
import { specificationOf } from '../docker/describe.ts';
import { type Inspect, inspectSchema } from '../docker/schema.ts';
import type { Image } from '../specification.ts';
import type { DockerHere } from './docker-here.ts';

const fixtureSchema = z.object({ name: z.string(), original: inspectSchema });

/** What Docker really said of a container. */
function plain(): Inspect {
  const lines = readFileSync(new URL('../docker/inspect.fixtures.jsonl', import.meta.url), 'utf8').split('\n');
  for (const line of lines.filter((each) => each !== '')) {
    const { name, original } = fixtureSchema.parse(JSON.parse(line));
    if (name === 'plain') return original;
  }
  throw new Error('no fixture plain');
}

export interface FakeContainer {
  pid: number;
  labels?: Record<string, string>;
  env?: string[];
  /** Where directories of the host are seen in it. */
  binds?: string[];
}

/** A Docker whose containers a test puts there and takes away. */
export class FakeDocker implements DockerHere {
  readonly #containers = new Map<string, Inspect>();

  put(name: string, { pid, labels = {}, env = [], binds = [] }: FakeContainer): void {
    const base = plain();
    const mounts = binds.map((destination) => ({
      Type: 'bind',
      Source: `/srv${destination}`,
      Destination: destination,
      Driver: '',
      Mode: '',
      RW: true,
      Propagation: 'rprivate',
    }));
    this.#containers.set(name, {
      ...base,
      Id: createHash('sha256').update(name).digest('hex'),
      Name: `/${name}`,
      State: { Status: pid > 0 ? 'running' : 'exited', Pid: pid },
      Mounts: mounts,
      Config: { ...base.Config, Labels: labels, Env: [...base.Config.Env, ...env] },
    });
  }

  clear(): void {
    this.#containers.clear();
  }

  readonly fingerprint: DockerHere['fingerprint'] = async (engine, lacks) => {
    const runtime = 'runc 1.1.15';
    const lack = await lacks(runtime);
    return { engine, version: '26.1.5', runtime, available: lack === undefined, ...lack };
  };

  readonly inspect = (reference: string): Promise<Inspect | undefined> => {
    const found = [...this.#containers].find(([name, { Id }]) => name === reference || Id === reference);
    return Promise.resolve(found?.[1]);
  };

  readonly labelled = (label: string, value: string): Promise<Inspect | undefined> =>
    Promise.resolve([...this.#containers.values()].find(({ Config: { Labels } }) => Labels[label] === value));

  readonly specify: DockerHere['specify'] = (inspect, name) => {
    const image: Image = { kind: 'image', id: inspect.Image, names: ['localhost/app:1'], size_bytes: 1 };
    return Promise.resolve(specificationOf({ ...inspect, Name: `/${name}` }, image, new Map()));
  };

  readonly image: DockerHere['image'] = () => Promise.resolve(undefined);
}
