import { connect } from 'node:net';
import type { Duplex } from 'node:stream';
import { ANSWERS, Refusal, type OpenPeerStream, type PeerStreamHeader, refusalOf, toRefusal } from './contract.ts';
import { reset, tune } from './streams.ts';

/** A TCP connection to the service on this system. */
export function connectHere(address: string, port: number, signal: AbortSignal, limit_ms: number): Promise<Duplex> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host: address, port, noDelay: true, allowHalfOpen: true });
    const fail = (reason: Refusal): void => {
      settle();
      socket.on('error', () => socket.destroy());
      socket.destroy();
      reject(reason);
    };
    const onError = (error: Error): void => {
      fail(new Refusal('failed', `the service did not accept a connection: ${error.message}`, error));
    };
    const onAbort = (): void => fail(new Refusal('moved', 'cancelled', signal.reason));
    const timer = setTimeout(() => fail(new Refusal('failed', 'the service did not accept in time')), limit_ms);
    const settle = (): void => {
      clearTimeout(timer);
      socket.off('error', onError);
      signal.removeEventListener('abort', onAbort);
    };
    socket.on('error', onError);
    signal.addEventListener('abort', onAbort);
    socket.once('connect', () => {
      settle();
      tune(socket);
      resolve(socket);
    });
  });
}

/** A stream to the service through another system's agent, ready for the connection's bytes. */
export async function connectPeer(
  open: OpenPeerStream,
  peer: string,
  header: PeerStreamHeader,
  signal: AbortSignal,
  limit_ms: number,
): Promise<Duplex> {
  const stream = await opened(open(peer, header, { signal }), peer, signal, limit_ms);
  tune(stream);
  try {
    const answer = await firstByte(stream, peer, signal, limit_ms);
    if (answer !== ANSWERS.connected) throw refusalOf(answer, peer);
    return stream;
  } catch (thrown) {
    stream.on('error', () => stream.destroy());
    reset(stream);
    throw thrown;
  }
}

/** The opened stream, or a refusal at once when the signal is aborted; a stream that comes too late is closed. */
function opened(promise: Promise<Duplex>, peer: string, signal: AbortSignal, limit_ms: number): Promise<Duplex> {
  return new Promise((resolve, reject) => {
    let over = false;
    const settle = (): void => {
      over = true;
      clearTimeout(timer);
      signal.removeEventListener('abort', onAbort);
    };
    const fail = (reason: Refusal): void => {
      settle();
      reject(reason);
    };
    const onAbort = (): void => fail(new Refusal('moved', 'cancelled', signal.reason));
    const timer = setTimeout(() => fail(new Refusal('failed', `${peer} did not answer in time`)), limit_ms);
    signal.addEventListener('abort', onAbort);
    promise.then(
      (stream) => {
        if (over) {
          stream.on('error', () => stream.destroy());
          reset(stream);
          return;
        }
        settle();
        resolve(stream);
      },
      (error: unknown) => {
        if (!over) fail(toRefusal(error));
      },
    );
    if (signal.aborted) onAbort();
  });
}

function firstByte(stream: Duplex, peer: string, signal: AbortSignal, limit_ms: number): Promise<number> {
  return new Promise((resolve, reject) => {
    const settle = (): void => {
      clearTimeout(timer);
      stream.off('readable', onReadable);
      stream.off('error', onError);
      stream.off('close', onClose);
      signal.removeEventListener('abort', onAbort);
    };
    const fail = (reason: Refusal): void => {
      settle();
      reject(reason);
    };
    const onReadable = (): void => {
      const chunk: unknown = stream.read(1);
      if (chunk instanceof Uint8Array && chunk[0] !== undefined) {
        settle();
        resolve(chunk[0]);
      } else if (stream.readableEnded) {
        onClose();
      }
    };
    const onError = (error: Error): void => fail(new Refusal('failed', `${peer}: ${error.message}`, error));
    const onClose = (): void => fail(new Refusal('failed', `${peer} closed the stream before it answered`));
    const onAbort = (): void => fail(new Refusal('moved', 'cancelled', signal.reason));
    const timer = setTimeout(() => fail(new Refusal('failed', `${peer} did not answer in time`)), limit_ms);
    stream.on('readable', onReadable);
    stream.on('error', onError);
    stream.on('close', onClose);
    stream.on('end', onClose);
    signal.addEventListener('abort', onAbort);
    if (signal.aborted) onAbort();
  });
}
