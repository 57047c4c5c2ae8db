import { UmsError } from '#src/telemetry/errors.ts';
import { ArchiveSieve } from './archive-sieve.ts';
import { ArchivedContent } from './archived-content.ts';
import { type BlockStore, LARGE_BYTES } from './blocks.ts';
import type { DumpView } from './dump-view.ts';
import { type BytePath, toText } from './paths.ts';
import type { PassPlan } from './plan.ts';
import { type Snapshot, TYPE } from './snapshot.ts';
import { type LiveRules, snapshotPath, type TarEntry, type TarHandlers, TarParser } from './tar-parser.ts';

export interface DeliveryOptions {
  /** The service writes while tar reads. */
  live: boolean;
  view?: DumpView | undefined;
  store?: BlockStore | undefined;
}

const END_OF_ARCHIVE: Uint8Array = Buffer.alloc(1024);

/** Compares what tar wrote with what the walk saw, so that whatever did not go as seen goes again. */
export class Delivery {
  delivered = 0;
  readonly #parser: TarParser;
  /** Only of a live pass. */
  readonly #sieve: ArchiveSieve | undefined;
  readonly #snapshot: Snapshot;
  readonly #missing: Set<number>;
  readonly #entries: ReadonlyMap<BytePath, number>;
  readonly #view: DumpView | undefined;
  readonly #store: BlockStore | undefined;
  /** What was nonsense, so that no link to it goes. */
  readonly #lost = new Set<BytePath>();
  /** A large file whose content goes by. */
  #content: { path: BytePath; archived: ArchivedContent } | undefined;

  constructor(snapshot: Snapshot, plan: PassPlan, options: DeliveryOptions) {
    this.#store = options.store;
    this.#snapshot = snapshot;
    this.#view = options.view;
    this.#missing = new Set(plan.send);
    this.#entries = new Map(plan.send.map((entry) => [snapshot.pathAt(entry), entry]));
    const handlers: TarHandlers = {
      entry: (entry) => this.#see(entry),
      content: (bytes) => this.#content?.archived.push(bytes),
    };
    const rules: LiveRules = {
      isExpected: (entry, isAfterNonsense) => this.#isExpected(entry, isAfterNonsense),
      dropped: (path) => this.#drop(path),
    };
    this.#parser = new TarParser(handlers, options.live ? rules : undefined);
    this.#sieve = options.live ? new ArchiveSieve(this.#parser) : undefined;
  }

  /** Takes tar's output and gives what is to go of it. */
  push(chunk: Uint8Array): Uint8Array[] {
    if (this.#sieve !== undefined) return this.#sieve.push(chunk);
    // tar fills its last block up with zeros that nobody needs.
    const used = this.#parser.push(chunk);
    return used > 0 ? [chunk.subarray(0, used)] : [];
  }

  /** Call at the end of tar's output; gives what has to follow. */
  close(): Uint8Array[] {
    this.#closeContent();
    if (!this.#parser.ended) {
      throw new UmsError('UMS_E_TRANSFER', { message: 'tar ended before its archive did', fault: 'source' });
    }
    const [first] = this.#missing;
    if (first !== undefined && this.#sieve === undefined) {
      throw changedWhileFrozen(this.#snapshot.pathAt(first));
    }
    for (const entry of this.#missing) this.#snapshot.stale.add(entry);
    return this.#sieve === undefined ? [] : [END_OF_ARCHIVE];
  }

  /** After nonsense only what is as the walk saw it: anything else goes in the next pass anyway. */
  #isExpected(seen: TarEntry, isAfterNonsense: boolean): boolean {
    const entry = this.#entries.get(snapshotPath(seen));
    if (entry === undefined) return false;
    if (seen.type === '1' && this.#lost.has(snapshotPath({ path: seen.target }))) return false;
    return !isAfterNonsense || this.#isAsWalked(seen, entry);
  }

  /** It is missing then; of what the other side keeps in its place nothing is assumed. */
  #drop(archivePath: BytePath): void {
    const path = snapshotPath({ path: archivePath });
    if (!this.#entries.has(path)) return;
    this.#lost.add(path);
    this.#store?.delete(path);
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
    const isSetAfterwards = seen.type === '5' && this.#view?.stats(path) !== undefined;
    if (isSetAfterwards || this.#isAsWalked(seen, entry)) this.#missing.delete(entry);
  }

  #isAsWalked(seen: TarEntry, entry: number): boolean {
    const snapshot = this.#snapshot;
    return (
      seen.mtimeNs === snapshot.get(entry, 'mtimeNs') &&
      BigInt(seen.uid) === snapshot.get(entry, 'uid') &&
      BigInt(seen.gid) === snapshot.get(entry, 'gid') &&
      BigInt(seen.mode) === (snapshot.get(entry, 'mode') & 0o7777n) &&
      (seen.type !== '0' || seen.size === snapshot.get(entry, 'size'))
    );
  }
}

export function changedWhileFrozen(path: BytePath): UmsError {
  return new UmsError('UMS_E_TRANSFER', {
    message: `${toText(path)} changed although the service is frozen`,
    fault: 'source',
    mend: 'Find what else writes to the files of the service: a process outside of it, or another service.',
  });
}
