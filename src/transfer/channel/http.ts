import { createServer, type RequestListener, type Server } from 'node:http';
import { aliveInterval_ms, DEFAULT_LIMITS, HTTP_HEADER_LIMIT_BYTES, type PeerLimits } from './limits.ts';

const peers = new WeakMap<object, string>();

export function setPeer(socket: object, peer: string): void {
  peers.set(socket, peer);
}

/** The authenticated peer at the other end of a request's socket; undefined for any other socket. */
export function peerOf(socket: object): { readonly name: string } | undefined {
  const name = peers.get(socket);
  return name === undefined ? undefined : { name };
}

/**
 * The HTTP server that handles the control messages of peers. It listens nowhere: the peer endpoint hands it
 * connections that are authenticated already. The body of a request is the handler's to bound (BODY_LIMIT_BYTES).
 */
export function createPeerHttpServer(listener: RequestListener, limits: PeerLimits = DEFAULT_LIMITS): Server {
  const server = createServer({
    maxHeaderSize: HTTP_HEADER_LIMIT_BYTES,
    headersTimeout: Math.min(limits.requestArrival_ms, limits.idle_ms),
    requestTimeout: limits.requestArrival_ms,
    keepAliveTimeout: 5000,
    connectionsCheckingInterval: 1000,
    noDelay: true,
  });
  server.maxHeadersCount = 100;
  server.on('request', (request, response) => {
    // The peer counts silence as loss, so a handler that takes long says in between that it is still there.
    const timer = setInterval(() => {
      if (!response.headersSent && !response.destroyed) response.writeProcessing();
    }, aliveInterval_ms(limits.idle_ms));
    response.once('close', () => clearInterval(timer));
    listener(request, response);
  });
  // The checks for slow requests begin with this event, which a server that never listens would not see.
  server.emit('listening');
  return server;
}
