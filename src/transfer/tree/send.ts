import { UmsError } from '#src/telemetry/errors.ts';
import { StreamingChild } from './child.ts';
import { encodeHeader, HEADER_VERSION, type SocketEntry, SOCKETS_LIMIT } from './header.ts';
import { type BytePath, toText } from './paths.ts';
import { attributeSuspects, type PassPlan, planPass } from './plan.ts';
import { scanTree } from './scan.ts';
import type { Snapshot } from './snapshot.ts';
import { TYPE } from './snapshot.ts';
import { isHarmlessWhileLive, isSummary, judge, packingArguments } from './tar.ts';
import { type TarEntry, TarParser } from './tar-parser.ts';

/** Where a tree lies on this host; a driver's Tree is one. */
export interface TreeLocation {
  path: string;
  /** overlay-upper: a writable layer with whiteouts and overlay attributes. */
  kind: 'plain' | 'overlay-upper';
}

export interface SendOptions {
  tree: TreeLocation;
  /** What the other side holds already; without it everything goes and the other side empties its directory first. */
  since?: Snapshot;
  /** Files ("dev:ino") whose times cannot be trusted: see sharedWritableMappings. */
  alwaysDirty?: ReadonlySet<string>;
  /** The service still runs: files that change while they are read are no failure, they go again in the next pass. */
  live: boolean;
  signal?: AbortSignal;
  onBytes?: (bytes: number) => void;
}

export interface SendResult {
  /** What the other side holds once it has received this pass. */
  snapshot: Snapshot;
  bytes: number;
  /** Entries carried, of every type. */
  files: number;
  deletions: number;
}

/** One pass over a tree. `stream` can be read once; `result()` is there after its end. */
export class TreeSending {
  readonly stream: AsyncIterable<Uint8Array>;
  #result: SendResult | undefined;

  constructor(options: SendOptions) {
    this.stream = this.#run(options);
  }

  result(): SendResult {
    if (this.#result !== undefined) return this.#result;
    throw new UmsError('UMS_E_INTERNAL', {
      message: 'the stream of a tree was not read to its end',
      fault: 'ums',
    });
  }

  async *#run(options: SendOptions): AsyncGenerator<Uint8Array, void, undefined> {
    let bytes = 0;
    const count = (chunk: Uint8Array): Uint8Array => {
      bytes += chunk.length;
      options.onBytes?.(chunk.length);
      return chunk;
    };
    const snapshot = await scanTree(options.tree.path, options.signal === undefined ? {} : { signal: options.signal });
    const rebuilt = await directoriesToRebuild(options, snapshot);
    const plan = planPass(snapshot, options.since, options.alwaysDirty ?? new Set(), rebuilt);
    carryAttributes(snapshot, options.since);
    for (const chunk of header(options.tree, snapshot, plan)) yield count(chunk);
    const delivery = new Delivery(snapshot, plan);
    if (plan.send.length > 0) {
      const names = plan.send.map((entry) => snapshot.pathAt(entry));
      const settings = { sparse: true, live: options.live, signal: options.signal };
      for await (const chunk of pack(options.tree.path, names, settings)) {
        // tar fills its last block up with zeros that nobody needs.
        const used = delivery.parser.push(chunk);
        if (used > 0) yield count(chunk.subarray(0, used));
      }
      delivery.close(options.live);
    }
    const files = delivery.delivered + plan.sockets.length;
    this.#result = { snapshot, bytes, files, deletions: plan.deletions.length };
  }
}

export function sendTree(options: SendOptions): TreeSending {
  return new TreeSending(options);
}

interface PackSettings {
  sparse: boolean;
  live: boolean;
  signal: AbortSignal | undefined;
}

/** tar's own output for these entries of a tree. It is killed when its reader stops early. */
export async function* pack(
  root: string,
  names: Iterable<BytePath>,
  settings: PackSettings,
): AsyncGenerator<Uint8Array, void, undefined> {
  settings.signal?.throwIfAborted();
  const child = new StreamingChild('tar', packingArguments(root, settings), {
    signal: settings.signal,
    isHarmless: settings.live ? isHarmlessWhileLive : isSummary,
  });
  let isWhole = false;
  try {
    const feeding = feedNames(child, names);
    for await (const chunk of child.output) {
      if (!(chunk instanceof Uint8Array)) throw new TypeError('a pipe gave text instead of bytes');
      yield chunk;
    }
    await feeding;
    const end = await child.end();
    settings.signal?.throwIfAborted();
    // Live, its exit codes 1 (changed) and 2 (vanished) tell nothing that its complaints do not tell better.
    const failure = judge(end, 'reading the files of the service', 'source', settings.live ? [0, 1, 2] : [0]);
    if (failure !== undefined) throw failure;
    isWhole = true;
  } finally {
    if (!isWhole) child.kill();
  }
}

const NAMES_BATCH = 512;

async function feedNames(child: StreamingChild, names: Iterable<BytePath>): Promise<void> {
  let batch: string[] = [];
  for (const name of names) {
    batch.push(name === '' ? './\0' : `./${name}\0`);
    if (batch.length < NAMES_BATCH) continue;
    // tar no longer reads: its end says why.
    if (!(await child.write(Buffer.from(batch.join(''), 'latin1')))) return;
    batch = [];
  }
  await child.write(Buffer.from(batch.join(''), 'latin1'));
  child.closeInput();
}

function header(tree: TreeLocation, snapshot: Snapshot, plan: PassPlan): Iterable<Buffer> {
  if (plan.sockets.length > SOCKETS_LIMIT) {
    throw new UmsError('UMS_E_TRANSFER', {
      message: `${tree.path} holds more than ${SOCKETS_LIMIT} unix sockets`,
      fault: 'user',
      mend: 'Remove the sockets that nobody listens on.',
    });
  }
  const sockets: SocketEntry[] = plan.sockets.map((entry) => ({
    path: snapshot.pathAt(entry),
    mode: Number(snapshot.get(entry, 'mode') & 0o7777n),
    uid: Number(snapshot.get(entry, 'uid')),
    gid: Number(snapshot.get(entry, 'gid')),
  }));
  const head = {
    version: HEADER_VERSION,
    kind: tree.kind,
    full: plan.full,
    entries: plan.send.length,
    deletions: plan.deletions.length,
    sockets: sockets.length,
  } as const;
  return encodeHeader(head, plan.deletions, sockets);
}

/** The path of an entry as the snapshot has it. */
export function snapshotPath(entry: TarEntry): BytePath {
  const path = entry.path.endsWith('/') ? entry.path.slice(0, -1) : entry.path;
  return path === '.' ? '' : path.startsWith('./') ? path.slice(2) : path;
}

/** Compares what tar wrote with what the walk saw, so that whatever did not go as seen goes again. */
class Delivery {
  readonly parser: TarParser;
  delivered = 0;
  readonly #snapshot: Snapshot;
  readonly #missing: Set<number>;

  constructor(snapshot: Snapshot, plan: PassPlan) {
    this.#snapshot = snapshot;
    this.#missing = new Set(plan.send);
    this.parser = new TarParser({ entry: (entry) => this.#see(entry) });
  }

  /** Call at the end of tar's output. */
  close(isLive: boolean): void {
    if (!this.parser.ended) {
      throw new UmsError('UMS_E_TRANSFER', { message: 'tar ended before its archive did', fault: 'source' });
    }
    const [first] = this.#missing;
    if (first !== undefined && !isLive) {
      throw new UmsError('UMS_E_TRANSFER', {
        message: `${toText(this.#snapshot.pathAt(first))} changed although the service is frozen`,
        fault: 'source',
        mend: 'Find what else writes to the files of the service: a process outside of it, or another service.',
      });
    }
    for (const entry of this.#missing) this.#snapshot.stale.add(entry);
  }

  #see(seen: TarEntry): void {
    this.delivered += 1;
    const path = snapshotPath(seen);
    const entry = this.#snapshot.index.get(path);
    if (entry === undefined) return;
    if (this.#snapshot.type(entry) === TYPE.directory) {
      if (seen.attributes.size > 0) this.#snapshot.attributes.set(path, [...seen.attributes.keys()]);
      else this.#snapshot.attributes.delete(path);
    }
    const isFile = seen.type === '0';
    const same =
      seen.mtimeNs === this.#snapshot.get(entry, 'mtimeNs') &&
      BigInt(seen.mode) === (this.#snapshot.get(entry, 'mode') & 0o7777n) &&
      (!isFile || seen.size === this.#snapshot.get(entry, 'size'));
    if (same) this.#missing.delete(entry);
  }
}

function carryAttributes(snapshot: Snapshot, before: Snapshot | undefined): void {
  for (const [path, names] of before?.attributes ?? []) {
    if (snapshot.index.has(path)) snapshot.attributes.set(path, names);
  }
}

/**
 * tar adds and replaces the extended attributes of a directory that exists, but takes none away. So before a pass asks
 * tar which names the changed directories still have; the rare one that lost some is removed there and sent anew.
 */
async function directoriesToRebuild(options: SendOptions, snapshot: Snapshot): Promise<Set<BytePath>> {
  const rebuilt = new Set<BytePath>();
  if (options.since === undefined) return rebuilt;
  // The tree's own directory cannot be removed; an attribute that it lost stays at the other side.
  const suspects = attributeSuspects(snapshot, options.since).filter((path) => path !== '');
  if (suspects.length === 0) return rebuilt;
  const present = new Map<BytePath, ReadonlyMap<string, string>>();
  const parser = new TarParser({ entry: (entry) => present.set(snapshotPath(entry), entry.attributes) });
  const settings = { sparse: false, live: options.live, signal: options.signal };
  for await (const chunk of pack(options.tree.path, suspects, settings)) parser.push(chunk);
  for (const path of suspects) {
    const names = present.get(path);
    // One that vanished meanwhile is the next pass's business.
    if (names === undefined) continue;
    const earlier = options.since.attributes.get(path) ?? [];
    if (earlier.some((name) => name.startsWith('SCHILY.xattr.') && !names.has(name))) rebuilt.add(path);
  }
  return rebuilt;
}
