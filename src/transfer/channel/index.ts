export { type BodyOptions, PeerClient, type PeerClientOptions, type StreamOptions } from './client.ts';
export { createPeerHttpServer, peerOf } from './http.ts';
export { BODY_LIMIT_BYTES, DEFAULT_LIMITS, type PeerLimits } from './limits.ts';
export type { PeerRequest } from './request.ts';
export type { DuplexHandler, OnewayContext, OnewayHandler, StreamContext } from './serve.ts';
export { PeerServer, type PeerServerOptions } from './server.ts';
