import { UmsError } from '#src/telemetry/errors.ts';
import type { BlockStore } from './blocks.ts';
import { StreamingChild } from './child.ts';
import { Delivery } from './delivery.ts';
import type { Facts } from './facts.ts';
import { encodeHeader, HEADER_VERSION, type SocketEntry, SOCKETS_LIMIT } from './header.ts';
import type { DumpView } from './dump-view.ts';
import { encodePatchHead, NO_ATTRIBUTES } from './patch.ts';
import type { BytePath } from './paths.ts';
import { attributeSuspects, type PassPlan, planPass } from './plan.ts';
import { scanTree } from './scan.ts';
import { patchHead, sendParts } from './send-parts.ts';
import type { Snapshot } from './snapshot.ts';
import { isHarmlessWhileLive, isSummary, judge, packingArguments } from './tar.ts';
import { snapshotPath, TarParser } from './tar-parser.ts';

/** Where a tree lies on this host; a driver's Tree is one. */
export interface TreeLocation {
  path: string;
  /** overlay-upper: a writable layer with whiteouts and overlay attributes. */
  kind: 'plain' | 'overlay-upper';
  /** False: what receives it need not be confined, because everything of this host is the service's container. */
  confined?: boolean;
}

export interface SendOptions {
  tree: TreeLocation;
  /** What the other side holds already; without it everything goes and the other side empties its directory first. */
  since?: Snapshot | undefined;
  /** Files ("dev:ino") whose times cannot be trusted: see sharedWritableMappings. */
  alwaysDirty?: ReadonlySet<string>;
  /** The service still runs: files that change while they are read are no failure, they go again in the next pass. */
  live: boolean;
  /** What some directories were before CRIU's dump began; then the pass may run beside the dump. */
  view?: DumpView | undefined;
  /** Digests of large files that the other side holds, and what reads extended attributes: with both, parts are sent. */
  parts?: { store: BlockStore; facts: Facts } | undefined;
  /** Programs that wait for work, for a pass of a frozen service. */
  ready?: ReadyPacks | undefined;
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
    const { since, view, signal } = options;
    const snapshot = await scanTree(options.tree.path, { since, view, signal });
    const rebuilt = await directoriesToRebuild(options, snapshot);
    const { store } = options.parts ?? {};
    const canPatch = (path: BytePath): boolean => store?.get(path) !== undefined;
    const plan = planPass(snapshot, since, options.alwaysDirty ?? new Set(), rebuilt, canPatch);
    carryAttributes(snapshot, since);
    snapshot.release();
    for (const chunk of header(options.tree, snapshot, plan, view)) yield count(chunk);
    if (options.parts !== undefined) {
      const settings = { ...options.parts, root: options.tree.path, live: options.live, signal };
      for (const entry of plan.patches) {
        for await (const chunk of sendParts(settings, snapshot, entry)) yield count(chunk);
      }
    }
    const delivery = new Delivery(snapshot, plan, { live: options.live, view, store });
    if (plan.send.length > 0) {
      const names = plan.send.map((entry) => snapshot.pathAt(entry));
      const settings = { sparse: true, live: options.live, signal, ready: options.ready, view };
      for await (const chunk of pack(options.tree.path, names, settings)) {
        for (const piece of delivery.push(chunk)) yield count(piece);
      }
      for (const piece of delivery.close()) yield count(piece);
    }
    store?.keep((path) => snapshot.index.has(path));
    const files = delivery.delivered + plan.sockets.length + plan.patches.length;
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
  ready?: ReadyPacks | undefined;
  view?: DumpView | undefined;
}

/** Programs that were started before they are needed and wait for the names of what they are to read. */
export class ReadyPacks {
  readonly #root: string;
  readonly #children: StreamingChild[] = [];

  constructor(root: string) {
    this.#root = root;
  }

  prepare(count: number): void {
    const settings = { sparse: true, live: false, signal: undefined };
    while (this.#children.length < count) this.#children.push(startPack(this.#root, settings));
  }

  take(): StreamingChild | undefined {
    return this.#children.pop();
  }

  close(): void {
    for (const child of this.#children.splice(0)) child.kill();
  }
}

function startPack(root: string, settings: PackSettings): StreamingChild {
  return new StreamingChild('tar', packingArguments(root, settings), {
    signal: settings.signal,
    isHarmless: settings.live ? isHarmlessWhileLive : isSummary,
  });
}

/** tar's own output for these entries of a tree. It is killed when its reader stops early. */
export async function* pack(
  root: string,
  names: Iterable<BytePath>,
  settings: PackSettings,
): AsyncGenerator<Uint8Array, void, undefined> {
  settings.signal?.throwIfAborted();
  const child = settings.ready?.take() ?? startPack(root, settings);
  const abort = (): void => child.kill();
  settings.signal?.addEventListener('abort', abort, { once: true });
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
    const okCodes = settings.live ? [0, 1, 2] : settings.view === undefined ? [0] : [0, 1];
    const complaints = end.complaints.filter((line) => !isOfTheDump(line, settings.view));
    const failure = judge({ ...end, complaints }, 'reading the files of the service', 'source', okCodes);
    if (failure !== undefined) throw failure;
    isWhole = true;
  } finally {
    settings.signal?.removeEventListener('abort', abort);
    if (!isWhole) child.kill();
  }
}

/** CRIU's own directory came or went while tar read the one that holds it; its times are set right afterwards. */
function isOfTheDump(line: string, view: DumpView | undefined): boolean {
  const path = /^tar: \.\/?(.*): file changed as we read it$/.exec(line)?.[1];
  return path !== undefined && view?.stats(path) !== undefined;
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

function header(tree: TreeLocation, snapshot: Snapshot, plan: PassPlan, view: DumpView | undefined): Iterable<Buffer> {
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
  // What tar says of these may be CRIU's doing, so they are set right afterwards.
  const directories = plan.send
    .filter((entry) => view?.stats(snapshot.pathAt(entry)) !== undefined)
    .map((entry) => encodePatchHead(patchHead(snapshot, entry, NO_ATTRIBUTES)));
  const head = {
    version: HEADER_VERSION,
    kind: tree.kind,
    full: plan.full,
    entries: plan.send.length,
    deletions: plan.deletions.length,
    sockets: sockets.length,
    directories: directories.length,
    patches: plan.patches.length,
  } as const;
  return encodeHeader(head, plan.deletions, sockets, directories);
}

function carryAttributes(snapshot: Snapshot, before: Snapshot | undefined): void {
  if (before === undefined || before.attributes.size === 0) return;
  for (const [path, names] of before.attributes) {
    if (snapshot.index.has(path)) snapshot.attributes.set(path, names);
  }
}

/**
 * tar adds and replaces the extended attributes of a directory that exists, but takes none away. So before a pass asks
 * tar which names the changed directories still have; the rare one that lost some is removed there and sent anew.
 */
async function directoriesToRebuild(options: SendOptions, snapshot: Snapshot): Promise<Set<BytePath>> {
  const rebuilt = new Set<BytePath>();
  if (options.since === undefined || options.since.attributes.size === 0) return rebuilt;
  // The tree's own directory cannot be removed; an attribute that it lost stays at the other side.
  const suspects = attributeSuspects(snapshot, options.since).filter((path) => path !== '');
  if (suspects.length === 0) return rebuilt;
  const present = new Map<BytePath, ReadonlyMap<string, string>>();
  const parser = new TarParser({ entry: (entry) => present.set(snapshotPath(entry), entry.attributes) });
  const { live, ready, view } = options;
  const settings = { sparse: false, live, signal: options.signal, ready, view };
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
