import { readlinkSync } from 'node:fs';
import { posix } from 'node:path';
import { z } from 'zod';
import { sharedWritableMappings, type TreeRound, TreesSender } from '#src/transfer/tree/index.ts';
import { progressReporter, type SagaContext, treesOf } from '../context.ts';
import type { Row } from '../journal.ts';
import { syncShared } from '../shared-storage.ts';

export interface FinalRound {
  signal: AbortSignal;
  /** The processes of the service, its first one first. */
  pids: readonly number[];
  /** The walk keeps this thread busy for a while, so it begins when CRIU has been told to. */
  begun: Promise<void>;
}

/** The files of one migration on their way: rounds while the service runs, and a last one when it is frozen. */
export interface TreeRounds {
  /** Everything at first, then what changed since the round before. */
  round(signal: AbortSignal): Promise<TreeRound>;
  /** The freeze is near: both sides start what the last round may need. Before each freeze that is tried. */
  prepare(signal: AbortSignal): Promise<void>;
  /**
   * The last round, to be asked for when the service is frozen and CRIU's dump has not begun. The dump may begin as soon
   * as this has returned, before its promise settles. The trees are exact at the destination when it does.
   */
  final(options: FinalRound): Promise<TreeRound>;
  /** How many passes the destination will have got, those of a round that has just been asked for included. */
  passes(): number;
  /** Ends what waits on both sides; without an effect when it has ended. */
  close(): void;
}

export async function createTreeRounds(context: SagaContext, row: Row, signal: AbortSignal): Promise<TreeRounds> {
  const trees = treesOf(row);
  const driver = context.driver(row.engine);
  const stream = await context.peers.openDuplex(
    row.destination,
    { kind: 'trees', migration: row.id },
    { signal, onWire: (bytes) => context.journal.addWire(row.id, bytes) },
  );
  const sender = new TreesSender(stream, trees);
  const shared = z.array(z.string()).parse(row.data['sharedPaths'] ?? []);
  const told = async (work: (onBytes: (bytes: number) => void) => Promise<TreeRound>): Promise<TreeRound> => {
    const progress = progressReporter(context, row.id, 'files', null);
    const round = await work(progress.add);
    progress.end();
    return round;
  };
  // What was mapped once may have been written through the mapping until it was taken away.
  const mapped = new Set<string>();
  const findMapped = async (pids: readonly number[]): Promise<ReadonlySet<string>> => {
    for (const identity of await sharedWritableMappings(pids, trees)) mapped.add(identity);
    return mapped;
  };
  return {
    round: (roundSignal) =>
      told(async (onBytes) => {
        const alwaysDirty = findMapped(await driver.processes(row.handle));
        return sender.round({ alwaysDirty, signal: roundSignal, onBytes });
      }),
    prepare: async (prepareSignal) => {
      // So that little is left to be written out in the last round.
      await syncShared(shared, prepareSignal);
      await sender.prepare(prepareSignal);
    },
    final: ({ pids, begun, signal: finalSignal }) => {
      const temporary = pids[0] === undefined ? [] : temporaryDirectories(pids[0]);
      const alwaysDirty = begun.then(() => findMapped(pids));
      const sent = told((onBytes) => sender.final({ alwaysDirty, temporary, signal: finalSignal, onBytes }));
      return Promise.all([sent, syncShared(shared, finalSignal)]).then(([round]) => round);
    },
    passes: () => sender.passes,
    close: () => sender.close(),
  };
}

/** Rounds before the freeze, the first not counted. */
const SETTLING_ROUNDS = 4;
/** What a last round carries in a few milliseconds over most links. */
const SETTLED_BYTES = 256 * 1024;

/** Rounds until little is left for the last one, or until they no longer help. */
export async function settle(trees: TreeRounds, signal: AbortSignal): Promise<void> {
  let before = Number.POSITIVE_INFINITY;
  for (let at = 0; at < SETTLING_ROUNDS; at += 1) {
    const { bytes } = await trees.round(signal);
    if (bytes < SETTLED_BYTES || bytes > before / 2) break;
    before = bytes;
  }
}

/** Symbolic links on the way to a directory; more than this is a loop, as for the kernel. */
const LINKS_LIMIT = 40;

/**
 * Where /tmp leads in a container, as paths in it. The links are followed one by one, because this host would take an
 * absolute one as its own. Not waited for, since a dump may begin right after.
 */
export function temporaryDirectories(pid: number): string[] {
  const found: string[] = [];
  let path = '/tmp';
  for (let links = 0; links < LINKS_LIMIT; links += 1) {
    found.push(path);
    const link = firstLink(`/proc/${pid}/root`, path);
    if (link === undefined) return found;
    path = posix.resolve(posix.dirname(link.at), link.target, link.rest);
  }
  return found;
}

/** The first symbolic link on a path, what it says, and what of the path is left after it. */
function firstLink(root: string, path: string): { at: string; target: string; rest: string } | undefined {
  const parts = path.split('/').filter((part) => part !== '');
  for (let end = 1; end <= parts.length; end += 1) {
    const at = `/${parts.slice(0, end).join('/')}`;
    try {
      return { at, target: readlinkSync(`${root}${at}`), rest: parts.slice(end).join('/') };
    } catch {
      // No link, or not there: then CRIU makes nothing in it either.
    }
  }
  return undefined;
}
