import { UmsError } from '#src/telemetry/errors.ts';
import { ArchivedContent } from './archived-content.ts';
import { type BlockStore, LARGE_BYTES } from './blocks.ts';
import type { DumpView } from './dump-view.ts';
import { type BytePath, toText } from './paths.ts';
import type { PassPlan } from './plan.ts';
import { type Snapshot, TYPE } from './snapshot.ts';
import { snapshotPath, type TarEntry, TarParser } from './tar-parser.ts';

/** Compares what tar wrote with what the walk saw, so that whatever did not go as seen goes again. */
export class Delivery {
  readonly parser: TarParser;
  delivered = 0;
  readonly #snapshot: Snapshot;
  readonly #missing: Set<number>;
  readonly #entries: ReadonlyMap<BytePath, number>;
  readonly #view: DumpView | undefined;
  readonly #store: BlockStore | undefined;
  /** A large file whose content goes by. */
  #content: { path: BytePath; archived: ArchivedContent } | undefined;

  constructor(snapshot: Snapshot, plan: PassPlan, view: DumpView | undefined, store: BlockStore | undefined) {
    this.#store = store;
    this.#snapshot = snapshot;
    this.#view = view;
    this.#missing = new Set(plan.send);
    this.#entries = new Map(plan.send.map((entry) => [snapshot.pathAt(entry), entry]));
    this.parser = new TarParser({
      entry: (entry) => this.#see(entry),
      content: (bytes) => this.#content?.archived.push(bytes),
    });
  }

  /** Call at the end of tar's output. */
  close(isLive: boolean): void {
    this.#closeContent();
    if (!this.parser.ended) {
      throw new UmsError('UMS_E_TRANSFER', { message: 'tar ended before its archive did', fault: 'source' });
    }
    const [first] = this.#missing;
    if (first !== undefined && !isLive) {
      throw changedWhileFrozen(this.#snapshot.pathAt(first));
    }
    for (const entry of this.#missing) this.#snapshot.stale.add(entry);
  }

  #closeContent(): void {
    const blocks = this.#content?.archived.finish();
    if (this.#content !== undefined && blocks !== undefined) this.#store?.set(this.#content.path, blocks);
    this.#content = undefined;
  }

  #see(seen: TarEntry): void {
    this.#closeContent();
    this.delivered += 1;
    const path = snapshotPath(seen);
    this.#store?.delete(path);
    if (this.#store !== undefined && seen.type === '0' && seen.size >= LARGE_BYTES) {
      this.#content = { path, archived: new ArchivedContent(seen.size, seen.isSparse) };
    }
    const entry = this.#entries.get(path);
    if (entry === undefined) return;
    if (this.#snapshot.type(entry) === TYPE.directory) {
      if (seen.attributes.size > 0) this.#snapshot.attributes.set(path, [...seen.attributes.keys()]);
      else this.#snapshot.attributes.delete(path);
    }
    const isFile = seen.type === '0';
    const isSetAfterwards = seen.type === '5' && this.#view?.stats(path) !== undefined;
    const same =
      isSetAfterwards ||
      (seen.mtimeNs === this.#snapshot.get(entry, 'mtimeNs') &&
        BigInt(seen.mode) === (this.#snapshot.get(entry, 'mode') & 0o7777n) &&
        (!isFile || seen.size === this.#snapshot.get(entry, 'size')));
    if (same) this.#missing.delete(entry);
  }
}

export function changedWhileFrozen(path: BytePath): UmsError {
  return new UmsError('UMS_E_TRANSFER', {
    message: `${toText(path)} changed although the service is frozen`,
    fault: 'source',
    mend: 'Find what else writes to the files of the service: a process outside of it, or another service.',
  });
}
