import { inspectContainer, inspectImage, labelledContainer } from '../docker/api.ts';
import { specificationOf } from '../docker/describe.ts';
import { dockerFingerprint } from '../docker/fingerprint.ts';
import { describeImage } from '../docker/images.ts';
import type { Inspect } from '../docker/schema.ts';
import { volumesOf } from '../docker/surroundings.ts';
import type { Image, Specification } from '../specification.ts';

/** What the drivers of schedulers ask of Docker on this host; it is handed to them so that a test can do without. */
export interface DockerHere {
  fingerprint: typeof dockerFingerprint;
  /** The container of exactly this id or name. */
  inspect: (reference: string) => Promise<Inspect | undefined>;
  labelled: (label: string, value: string) => Promise<Inspect | undefined>;
  /** What a container is, under the name of the service that it belongs to. */
  specify: (inspect: Inspect, name: string) => Promise<Specification>;
  image: (name: string) => Promise<Image | undefined>;
}

export const dockerHere: DockerHere = {
  fingerprint: dockerFingerprint,
  inspect: inspectContainer,
  labelled: labelledContainer,
  specify: async (inspect, name) => {
    const [image, volumes] = await Promise.all([describeImage(inspect), volumesOf(inspect)]);
    return specificationOf({ ...inspect, Name: `/${name}` }, image, volumes);
  },
  image: async (name) => {
    const image = name === '' ? undefined : await inspectImage(name);
    if (image === undefined) return undefined;
    return { kind: 'image', id: image.Id, names: image.RepoTags.slice(0, 64), size_bytes: image.Size };
  },
};
