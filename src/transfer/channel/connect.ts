import { connect, type PeerCertificate, type TLSSocket } from 'node:tls';
import { toUmsError, UmsError } from '#src/telemetry/errors.ts';
import { asConnectionFailure, malformed, silent, unpaired, unreachable } from '#src/trust/failures.ts';
import { encodeMessage, receiveMessage } from '#src/trust/messages.ts';
import { ByteReader } from '#src/trust/reader.ts';
import type { PeerRecord } from '#src/trust/store.ts';
import type { Trust } from '#src/trust/trust.ts';
import { systemUri } from '#src/trust/x509.ts';
import { answerSchema } from './answer.ts';
import { DATA_PROTOCOL, HEADER_LIMIT_BYTES, KEEPALIVE_DELAY_MS, TRAILER_LIMIT_BYTES } from './limits.ts';

export interface DataConnection {
  readonly socket: TLSSocket;
  readonly reader: ByteReader;
  readonly peer: string;
}

export interface OpenOptions {
  readonly idle_ms: number;
  readonly signal?: AbortSignal | undefined;
  /** Called with the socket before anything happens on it. */
  readonly onSocket: (socket: TLSSocket) => void;
}

type IdentityCheck = (host: string, certificate: PeerCertificate) => Error | undefined;

/** Accepts a server that speaks for this peer; addresses do not matter. */
export function speaksFor(peer: string): IdentityCheck {
  return (_host, certificate) =>
    certificate.subjectaltname === `URI:${systemUri(peer)}`
      ? undefined
      : unpaired(`What answers at the address of ${peer} speaks for another system`);
}

/** What a connection to a peer trusts is the authority learnt when it was paired, nothing else. */
export function tlsOptions(trust: Trust, peer: PeerRecord, protocol: string) {
  return {
    ...trust.clientCredentials(peer),
    host: peer.address,
    port: peer.port,
    minVersion: 'TLSv1.3' as const,
    ALPNProtocols: [protocol],
  };
}

/** Why the caller gave up, as an error: its own reason when it gave one. */
export function cancelled(signal: AbortSignal): UmsError {
  const reason: unknown = signal.reason;
  if (reason instanceof UmsError) return reason;
  if (reason instanceof Error && reason.name === 'TimeoutError') {
    return new UmsError('UMS_E_TIMEOUT', { message: 'The transfer took longer than its limit', fault: 'network' });
  }
  if (reason instanceof Error && reason.name !== 'AbortError') return toUmsError(reason);
  return new UmsError('UMS_E_CANCELLED', { message: 'The transfer was cancelled', fault: 'user' });
}

/** Ends the connection when the signal says so, for as long as the connection lives. */
export function destroyOnAbort(socket: TLSSocket, signal: AbortSignal | undefined): void {
  if (signal === undefined) return;
  const abort = (): void => {
    socket.destroy(cancelled(signal));
  };
  signal.addEventListener('abort', abort, { once: true });
  socket.once('close', () => signal.removeEventListener('abort', abort));
}

/** A data connection whose header the peer has accepted. */
export async function openData(
  trust: Trust,
  peer: PeerRecord,
  header: { kind: string },
  options: OpenOptions,
): Promise<DataConnection> {
  if (options.signal?.aborted === true) throw cancelled(options.signal);
  const first = encodeMessage(header, HEADER_LIMIT_BYTES);
  const socket = connect({
    ...tlsOptions(trust, peer, DATA_PROTOCOL),
    checkServerIdentity: speaksFor(peer.name),
  });
  socket.setNoDelay(true);
  socket.setKeepAlive(true, KEEPALIVE_DELAY_MS);
  options.onSocket(socket);
  destroyOnAbort(socket, options.signal);
  try {
    await handshake(socket, peer.name, options.idle_ms);
    const reader = new ByteReader(socket, {
      from: peer.name,
      idle_ms: options.idle_ms,
      truncated: () => unreachable(peer.name, 'the connection closed'),
    });
    socket.write(first);
    const answer = await receiveMessage(reader, TRAILER_LIMIT_BYTES, answerSchema);
    if ('error' in answer) throw UmsError.fromReport(answer.error);
    return { socket, reader, peer: peer.name };
  } catch (error) {
    socket.destroy();
    throw asConnectionFailure(peer.name, error);
  }
}

function handshake(socket: TLSSocket, peer: string, limit_ms: number): Promise<void> {
  return new Promise<void>((resolve, reject) => {
    const timer = setTimeout(() => socket.destroy(silent(peer, limit_ms)), limit_ms);
    // Stays for the life of the socket, so that a late error always has somebody who hears it.
    socket.on('error', reject);
    socket.once('close', () => {
      clearTimeout(timer);
      reject(unreachable(peer, 'the connection closed'));
    });
    socket.once('secureConnect', () => {
      clearTimeout(timer);
      if (socket.alpnProtocol === DATA_PROTOCOL) resolve();
      else reject(malformed(peer, 'no word of the data protocol'));
    });
  });
}
