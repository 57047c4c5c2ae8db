import type { CreateRecords } from '../oci/records.ts';
import type { Cluster } from './api.ts';
import type { CreateRecord } from './create.ts';
import type { PodHandle } from './handle.ts';
import { giveBack, holdOwner, type OwnerMeans, tellWhere } from './owner.ts';
import { ownerTold } from './owner-told.ts';
import { podSchema } from './schema.ts';
import type { SetRecord } from './stateful-set.ts';

/** The owners of the pods that handles mean; pods of their own have none, and nothing is asked for them. */
export class Owners {
  readonly #cluster: Cluster;
  readonly #records: CreateRecords<SetRecord>;
  /** Pods whose owners are held since this agent runs: the service need not wait for them to say so again. */
  readonly #held = new Set<string>();

  constructor(cluster: Cluster, records: CreateRecords<SetRecord>) {
    this.#cluster = cluster;
    this.#records = records;
  }

  async #means(): Promise<OwnerMeans> {
    return { api: await this.#cluster.api(), records: this.#records };
  }

  /** While the service still runs: an owner takes its time. */
  async hold({ namespace, owner }: PodHandle): Promise<void> {
    if (owner === undefined || this.#held.has(owner.pod)) return;
    await holdOwner(await this.#means(), namespace, owner);
    this.#held.add(owner.pod);
  }

  /** The service stays here; also when it has ended meanwhile: then its owner makes another one, as it would have. */
  async stays({ namespace, name, uid, owner }: PodHandle): Promise<void> {
    if (owner === undefined || uid === undefined) return;
    this.#held.delete(owner.pod);
    await giveBack(await this.#means(), namespace, owner, { name, uid }, false);
  }

  /** The service has come back for good: nobody can call it back any more, so its owner may do with it what it likes. */
  async returned({ namespace, name }: PodHandle, record: CreateRecord | undefined): Promise<void> {
    // One that found its owner gone may still find what that one kept for it.
    const owner =
      record?.owner ?? (record === undefined ? undefined : ownerTold(podSchema.parse(JSON.parse(record.manifest))));
    if (owner === undefined) return;
    await giveBack(await this.#means(), namespace, owner, { name, uid: record?.uid ?? '' }, true);
  }

  async left({ namespace, owner }: PodHandle, goneTo: string | undefined): Promise<void> {
    if (owner === undefined || goneTo === undefined) return;
    this.#held.delete(owner.pod);
    await tellWhere(await this.#means(), namespace, owner, goneTo);
  }
}
