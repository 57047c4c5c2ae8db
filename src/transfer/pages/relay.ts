import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { UmsError } from '#src/telemetry/errors.ts';

/**
 * The source's end of the page path: CRIU speaks its page-server protocol to this address on loopback, and the bytes go
 * to the destination on a stream of the agents' own connection. CRIU never touches the network.
 */
export interface PageRelay {
  address: string;
  port: number;
  /** Why the link broke, if it broke while CRIU still needed it. */
  failure(): UmsError | undefined;
  /**
   * Ends the relay. During a dump CRIU notices the lost page server, puts the processes back in order, and they stay
   * frozen; after a dump it only frees the sockets.
   */
  close(): void;
}

export async function openPageRelay(stream: Duplex, onBytes: (bytes: number) => void): Promise<PageRelay> {
  const server = createServer({ allowHalfOpen: true, noDelay: true });
  let local: Socket | undefined;
  let failure: UmsError | undefined;
  // Once CRIU has let go of its end, by success or because it refuses to dump, a broken link is only the consequence.
  let letGo = false;
  const fail = (error: unknown) => {
    if (!letGo) failure ??= relayError(error instanceof Error ? error.message : String(error));
    server.close();
    local?.destroy();
    stream.destroy();
  };
  stream.on('error', fail);
  server.once('connection', (socket) => {
    // One dump makes one connection; nobody else on this host gets in after it.
    server.close();
    local = socket;
    for (const end of ['end', 'error']) socket.once(end, () => (letGo = true));
    socket.on('data', (chunk: Buffer) => onBytes(chunk.length));
    pipeline(socket, stream, { end: true }).catch(fail);
    // CRIU closes its socket as soon as it has read the page server's verdict, so the way back may end early.
    stream.pipe(socket);
    socket.on('error', fail);
    stream.once('close', () => socket.destroy());
  });
  const port = await listenOnLoopback(server);
  return {
    address: '127.0.0.1',
    port,
    failure: () => failure,
    close: () => {
      server.close();
      local?.destroy();
      stream.destroy();
    },
  };
}

async function listenOnLoopback(server: Server): Promise<number> {
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, '127.0.0.1', 1, () => resolve());
  });
  const address: AddressInfo | string | null = server.address();
  if (address === null || typeof address === 'string') throw relayError('no port could be opened on loopback');
  return address.port;
}

function relayError(reason: string): UmsError {
  return new UmsError('UMS_E_TRANSFER', {
    message: `Memory pages could not be sent: ${reason}.`,
    fault: 'network',
    mend: 'Check the link to the destination (ums systems) and try again.',
  });
}
