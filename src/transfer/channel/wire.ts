import type { TLSSocket } from 'node:tls';

const REPORT_INTERVAL_MS = 250;
/** A TLS 1.3 record carries at most this much, */
const RECORD_BYTES = 16_384;
/** and this besides: header, content type and authentication tag. */
const RECORD_OVERHEAD_BYTES = 22;

/** Bytes that a TLS connection has cost so far in both directions, without the headers of TCP and IP. */
export function wireBytes(socket: TLSSocket): number {
  const bytes = socket.bytesRead + socket.bytesWritten;
  return bytes + Math.ceil(bytes / RECORD_BYTES) * RECORD_OVERHEAD_BYTES;
}

/** Reports what was added since the last report, at intervals and once more when the connection has closed. */
export function reportWire(socket: TLSSocket, onWire: (bytes: number) => void): void {
  let reported = 0;
  const report = (): void => {
    const total = wireBytes(socket);
    if (total > reported) onWire(total - reported);
    reported = Math.max(total, reported);
  };
  const timer = setInterval(report, REPORT_INTERVAL_MS);
  socket.once('close', () => {
    clearInterval(timer);
    report();
  });
}
