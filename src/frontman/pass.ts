import type { Duplex } from 'node:stream';
import type { Limits } from './contract.ts';
import type { Lease } from './gate.ts';
import { closed, farewell, reset } from './streams.ts';

/**
 * Joins a client's stream with a stream to the service: bytes both ways with back-pressure, each direction ended for
 * itself, and a hard end of one side handed on to the other as one.
 */
export function join(client: Duplex, lease: Lease, limits: Limits, drain_ms?: number): void {
  const service = lease.stream;
  let parting = false;
  client.on('error', () => client.destroy());
  client.once('close', () => {
    if (!endedWell(client)) reset(service);
  });
  service.once('close', () => {
    if (parting || endedWell(service)) return;
    if (service.readableEnded) farewell(client, limits.linger_ms);
    else reset(client);
  });
  if (client.destroyed || service.destroyed) {
    reset(client);
    reset(service);
    return;
  }
  client.pipe(service);
  service.pipe(client);
  lease.drain = async () => {
    if (drain_ms !== undefined) await closed(service, drain_ms);
    if (service.closed) return;
    parting = true;
    await drainTcp(client, service, limits);
  };
}

function endedWell(stream: Duplex): boolean {
  return stream.readableEnded && stream.writableFinished;
}

/** Takes no more from the client, lets the answers that are under way go out, then ends both sides. */
async function drainTcp(client: Duplex, service: Duplex, limits: Limits): Promise<void> {
  client.unpipe(service);
  client.pause();
  await quiet(service, limits.quiet_ms, limits.tcpDrain_ms);
  service.end();
  await closed(service, limits.farewell_ms);
  service.unpipe(client);
  reset(service);
  farewell(client, limits.linger_ms);
}

/** Resolves when the stream has brought no byte for a while, has closed, or the whole time is up. */
function quiet(stream: Duplex, quiet_ms: number, limit_ms: number): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(silence);
      clearTimeout(end);
      stream.off('data', onData);
      stream.off('close', done);
      stream.off('end', done);
      resolve();
    };
    const onData = (): void => {
      silence.refresh();
    };
    const silence = setTimeout(done, quiet_ms);
    const end = setTimeout(done, limit_ms);
    stream.on('close', done);
    stream.on('end', done);
    stream.on('data', onData);
  });
}
