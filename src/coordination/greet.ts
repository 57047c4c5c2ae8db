import type { z } from 'zod';
import type { SagaContext } from './context.ts';
import { helloSchema, PROTOCOL } from './messages.ts';

const GREETING_TIMEOUT_MS = 20_000;

/** Asks another system who it is. Afterwards there is a connection for the next request. */
export function greet(context: SagaContext, peer: string, signal: AbortSignal): Promise<z.infer<typeof helloSchema>> {
  return context.peers.request(peer, {
    method: 'POST',
    path: '/peer/v1/hello',
    body: { protocol: PROTOCOL },
    schema: helloSchema,
    timeout_ms: GREETING_TIMEOUT_MS,
    signal,
  });
}
