import type { RuntimeContainer } from '../oci/container.ts';
import type { CreateRecords } from '../oci/records.ts';
import type { Cluster } from './api.ts';
import { podOfMigration } from './arrival.ts';
import { containersOf, type CreateRecord, wantedOf } from './create.ts';
import { errors } from './errors.ts';
import type { PodHandle } from './handle.ts';
import { containerIds, runtimeContainer } from './node.ts';
import type { Pod } from './schema.ts';

/** What handles mean now: asked of the records here, and of the cluster. */
export class Known {
  readonly #cluster: Cluster;
  readonly #records: CreateRecords<CreateRecord>;

  constructor(cluster: Cluster, records: CreateRecords<CreateRecord>) {
    this.#cluster = cluster;
    this.#records = records;
  }

  async record(key: string | undefined): Promise<CreateRecord | undefined> {
    return key === undefined ? undefined : await this.#records.read(key);
  }

  /** In the order of the manifest. At the destination a container is known only once it waits for its processes. */
  async containers(handle: PodHandle): Promise<RuntimeContainer[]> {
    const { container, more } = handle;
    const ids = container === undefined ? await this.#idsOfKey(handle) : [container, ...(more ?? [])];
    return ids.map(runtimeContainer);
  }

  async #idsOfKey({ key, namespace, name }: PodHandle): Promise<string[]> {
    const record = await this.record(key);
    if (record !== undefined) return containersOf(record);
    const pod = await (await this.#cluster.api()).pod(namespace, name);
    return pod === undefined ? [] : containerIds(pod).filter((id) => id !== undefined);
  }

  async requireContainers(handle: PodHandle): Promise<RuntimeContainer[]> {
    const containers = await this.containers(handle);
    if (containers.length === 0) throw errors.gone(handle.name);
    return containers;
  }

  /** Whether a migration makes it here, and has come to only so many of its containers. */
  async isAwaited({ key, container }: PodHandle, count: number): Promise<boolean> {
    if (container !== undefined) return false;
    const record = await this.record(key);
    return record !== undefined && count < wantedOf(record).length;
  }

  /** The pod, as the API server knows it. */
  async pod({ key, namespace, name, uid }: PodHandle): Promise<Pod | undefined> {
    const api = await this.#cluster.api();
    if (uid !== undefined) {
      const pod = await api.pod(namespace, name);
      return pod?.metadata.uid === uid ? pod : undefined;
    }
    const record = await this.record(key);
    if (record === undefined || key === undefined) return await api.pod(namespace, name);
    return await podOfMigration(api, record, key);
  }
}
