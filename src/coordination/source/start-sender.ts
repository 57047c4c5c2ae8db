import { hash } from 'node:crypto';
import type { PageCacheWriter } from '#src/transfer/pages/cache.ts';
import { PageSender } from '#src/transfer/pages/sender.ts';
import type { SagaContext } from '../context.ts';
import type { Row } from '../journal.ts';

/** Connections for bulk; one more carries control and what a process waits for. */
const CONNECTIONS = 2;
/** How long a broken link is retried before the commit; afterwards the source asks again for as long as it takes. */
const RECONNECT_MS = 20_000;

/** The sender of a migration's memory, with its connections open. */
export function startSender(
  context: SagaContext,
  row: Row,
  cache: PageCacheWriter | undefined,
  signal: AbortSignal,
): Promise<PageSender> {
  return PageSender.start({
    open: (index, opening) =>
      context.peers.openDuplex(
        row.destination,
        { kind: 'memory', migration: row.id, index },
        { signal: opening, onWire: (bytes) => context.journal.addWire(row.id, bytes) },
      ),
    connections: CONNECTIONS,
    compression: 'auto',
    reconnect_ms: RECONNECT_MS,
    // The same after a restart of this agent, so that the receiver knows that it goes on.
    session: hash('sha256', row.id).slice(0, 32),
    cache,
    ...(row.options.rateLimit_bytes_s === 0 ? {} : { rate_bytes_s: row.options.rateLimit_bytes_s }),
    signal,
  });
}
