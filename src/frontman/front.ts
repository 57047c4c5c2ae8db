import type { Server, Socket } from 'node:net';
import { UmsError } from '#src/telemetry/errors.ts';
import type { Limits } from './contract.ts';
import type { Counters } from './counters.ts';
import type { Gate } from './gate.ts';
import type { FrontmanRecord } from './table.ts';

/** One listening address in front of a service. */
export interface Front {
  readonly record: FrontmanRecord;
  readonly connections: number;
  readonly waiting: number;
  listen: () => Promise<void>;
  close: () => Promise<void>;
}

export interface FrontParts {
  record: FrontmanRecord;
  gate: () => Gate;
  limits: Limits;
  counters: Counters;
}

const BACKLOG = 4096;

/** Listens, and turns a refusal of the kernel into words. */
export function listen(server: Server, parts: FrontParts): Promise<void> {
  const { address, port } = parts.record.listen;
  return new Promise((resolve, reject) => {
    const onError = (error: Error): void => {
      server.off('listening', onListening);
      reject(listenError(error, address, port));
    };
    const onListening = (): void => {
      server.off('error', onError);
      // A connection that could not be accepted (no descriptor left) is that client's loss; the server goes on.
      server.on('error', () => parts.counters.add('not_accepted'));
      resolve();
    };
    server.once('error', onError);
    server.once('listening', onListening);
    server.listen({ host: address, port, backlog: BACKLOG });
  });
}

function listenError(error: Error, address: string, port: number): UmsError {
  const code = 'code' in error ? error.code : undefined;
  const where = `${address}:${port}`;
  if (code === 'EADDRINUSE') {
    return new UmsError('UMS_E_PORT_TAKEN', {
      message: `The Frontman cannot listen on ${where}: another program already does.`,
      fault: 'user',
      state: 'No Frontman was made.',
      mend: `Choose another port, or find the program with: ss -ltnp 'sport = :${port}'`,
      cause: error,
    });
  }
  const mend =
    code === 'EADDRNOTAVAIL' || code === 'ENOTFOUND' || code === 'EINVAL'
      ? 'Use an address of this host, or 0.0.0.0 for all of them.'
      : code === 'EACCES'
        ? 'Use a port from 1024 on, or give the agent CAP_NET_BIND_SERVICE.'
        : 'See the reason given.';
  return new UmsError('UMS_E_FRONTMAN', {
    message: `The Frontman cannot listen on ${where}: ${error.message}`,
    fault: 'user',
    state: 'No Frontman was made.',
    mend,
    cause: error,
  });
}

export function closeServer(server: Server): Promise<void> {
  return new Promise((resolve) => {
    if (!server.listening) resolve();
    else server.close(() => resolve());
  });
}

/** Keeps the set of a front's open client connections. */
export function track(sockets: Set<Socket>, socket: Socket): void {
  sockets.add(socket);
  socket.once('close', () => sockets.delete(socket));
}
