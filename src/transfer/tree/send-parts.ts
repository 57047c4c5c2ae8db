import type { BlockStore } from './blocks.ts';
import { Comparison } from './compare.ts';
import { changedWhileFrozen } from './delivery.ts';
import type { Facts } from './facts.ts';
import { u32 } from './header.ts';
import { encodePatchHead, encodePiece, LAST_PIECE, type PatchHead } from './patch.ts';
import { fromText } from './paths.ts';
import { inspect } from './scan.ts';
import type { Snapshot } from './snapshot.ts';

export interface PartsOptions {
  root: string;
  store: BlockStore;
  facts: Facts;
  live: boolean;
  signal: AbortSignal | undefined;
}

/** What is different of one file: see header.ts. */
export async function* sendParts(
  options: PartsOptions,
  snapshot: Snapshot,
  entry: number,
): AsyncGenerator<Uint8Array, void, undefined> {
  const path = snapshot.pathAt(entry);
  const { store, facts } = options;
  const known = store.get(path);
  if (known === undefined) throw new Error(`nothing is known of ${path}`);
  // Until all of it is on its way nothing certain is known of the other side.
  store.delete(path);
  const full = `${fromText(options.root)}/${path}`;
  const head = encodePatchHead(patchHead(snapshot, entry, await facts.attributes(full)));
  yield Buffer.concat([u32(head.length), head]);
  const comparison = new Comparison(full, Number(snapshot.get(entry, 'size')), known);
  for await (const { offset, bytes } of comparison.pieces(options.signal)) {
    const [pieceHead, content] = encodePiece(offset, bytes);
    yield pieceHead;
    yield content;
  }
  yield LAST_PIECE;
  const after = inspect(full);
  const isAsSeen = comparison.blocks !== undefined && after?.ctimeNs === snapshot.get(entry, 'ctimeNs');
  if (comparison.blocks !== undefined) store.set(path, comparison.blocks);
  if (isAsSeen) return;
  if (!options.live) throw changedWhileFrozen(path);
  snapshot.stale.add(entry);
}

export function patchHead(snapshot: Snapshot, entry: number, attributes: Uint8Array): PatchHead {
  return {
    path: snapshot.pathAt(entry),
    size: snapshot.get(entry, 'size'),
    mode: Number(snapshot.get(entry, 'mode') & 0o7777n),
    uid: Number(snapshot.get(entry, 'uid')),
    gid: Number(snapshot.get(entry, 'gid')),
    mtimeNs: snapshot.get(entry, 'mtimeNs'),
    attributes,
  };
}
