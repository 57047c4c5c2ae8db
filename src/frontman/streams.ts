import { Socket } from 'node:net';
import type { Duplex } from 'node:stream';

/** Closes so that nothing still in a buffer goes out: a reset where the stream is a TCP socket. */
export function reset(stream: Duplex): void {
  if (stream instanceof Socket && !stream.destroyed && typeof stream.resetAndDestroy === 'function') {
    stream.resetAndDestroy();
    return;
  }
  stream.destroy();
}

/** Small writes go out at once, and a peer that vanished without a word is noticed by the kernel. */
export function tune(socket: Duplex): void {
  if (!(socket instanceof Socket)) return;
  socket.setNoDelay(true);
  socket.setKeepAlive(true, 60_000);
}

/** Resolves when the stream is closed or the time is up. */
export function closed(stream: Duplex, limit_ms: number): Promise<void> {
  if (stream.closed) return Promise.resolve();
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      stream.off('close', done);
      resolve();
    };
    const timer = setTimeout(done, limit_ms);
    stream.on('close', done);
  });
}

/** Waits, but not longer than until the signal is aborted. */
export function pause(delay_ms: number, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, delay_ms);
    signal.addEventListener('abort', done);
  });
}

/**
 * Sends what is still queued for the client and then the end; what the client still says is thrown away meanwhile,
 * because closing with unread bytes would make the kernel send a reset that can overtake the last bytes of an answer.
 */
export function farewell(client: Duplex, limit_ms: number): void {
  if (client.destroyed) return;
  client.end();
  client.resume();
  const timer = setTimeout(() => client.destroy(), limit_ms);
  client.once('close', () => clearTimeout(timer));
}
