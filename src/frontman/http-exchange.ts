import { type ClientRequest, type IncomingMessage, request as clientRequest, type ServerResponse } from 'node:http';
import { endToEnd, hasBody, requestHeaders } from './http-headers.ts';
import type { Upstream } from './http-upstream.ts';
import { closed, reset } from './streams.ts';

/** `done`: answered, stream reusable; `ended`: answered, stream not reusable; `lost`: the stream broke. */
export type Outcome = 'done' | 'ended' | 'lost';

/** Sends one request to the service and its answer to the client, bodies streamed both ways. */
export function exchange(
  upstream: Upstream,
  request: IncomingMessage,
  response: ServerResponse,
  drain_ms: number,
): Promise<Outcome> {
  return new Promise((resolve) => {
    const out = clientRequest({
      agent: upstream.agent,
      method: request.method,
      path: request.url,
      headers: requestHeaders(request),
      setHost: false,
    });
    let over = false;
    const finish = (outcome: Outcome): void => {
      if (over) return;
      over = true;
      response.off('close', onClientGone);
      request.unpipe(out);
      resolve(outcome);
    };
    const lost = (): void => {
      upstream.close();
      finish('lost');
    };
    const onClientGone = (): void => {
      if (!response.writableFinished) lost();
    };
    // The request in flight may finish; whatever is left of it then cannot reach the service.
    upstream.lease.drain = async () => {
      await closed(upstream.lease.stream, over ? 0 : drain_ms);
      reset(upstream.lease.stream);
    };
    response.on('close', onClientGone);
    out.on('error', lost);
    out.on('continue', () => {
      if (!response.headersSent) response.writeContinue();
    });
    out.on('response', (answer) => {
      if (!sendAnswer(answer, response)) {
        lost();
        return;
      }
      answer.on('error', lost);
      answer.once('aborted', lost);
      answer.once('end', () => {
        if (!answer.complete) return;
        response.addTrailers(answer.trailersDistinct);
        response.end();
        finish(reusable(answer, request) ? 'done' : 'ended');
      });
    });
    sendBody(request, out);
  });
}

function sendBody(request: IncomingMessage, out: ClientRequest): void {
  if (!hasBody(request)) {
    out.end();
    return;
  }
  request.pipe(out, { end: false });
  request.once('end', () => {
    if (request.rawTrailers.length > 0) out.addTrailers(request.trailersDistinct);
    out.end();
  });
}

/** False when the answer cannot be expressed towards the client. */
function sendAnswer(answer: IncomingMessage, response: ServerResponse): boolean {
  const status = answer.statusCode ?? 502;
  response.sendDate = false;
  try {
    response.writeHead(status, answer.statusMessage ?? '', endToEnd(answer));
  } catch (thrown) {
    if (thrown instanceof TypeError || thrown instanceof RangeError) return false;
    throw thrown;
  }
  answer.pipe(response, { end: false });
  // A client that waits for the head must not wait for the first byte of the body.
  response.flushHeaders();
  return true;
}

function reusable(answer: IncomingMessage, request: IncomingMessage): boolean {
  const connection = (answer.headers.connection ?? '').toLowerCase();
  if (connection.includes('close') || !request.complete) return false;
  return answer.httpVersionMinor >= 1 || connection.includes('keep-alive');
}
