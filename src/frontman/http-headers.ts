import type { IncomingMessage } from 'node:http';

/** Headers that speak of one connection only, and so are not passed on. */
const HOP_BY_HOP = new Set([
  'connection',
  'keep-alive',
  'proxy-connection',
  'proxy-authenticate',
  'proxy-authorization',
  'te',
  'transfer-encoding',
  'upgrade',
]);

/** The end-to-end headers as a flat list of names and values, with their spelling, order and repetitions. */
export function endToEnd(message: IncomingMessage): string[] {
  const named = new Set((message.headers.connection ?? '').split(',').map((name) => name.trim().toLowerCase()));
  const kept: string[] = [];
  for (const [name, value] of pairs(message.rawHeaders)) {
    const lower = name.toLowerCase();
    if (!HOP_BY_HOP.has(lower) && !named.has(lower)) kept.push(name, value);
  }
  return kept;
}

/** Headers of a request on its way to the service: framing as the client chose it, and who the client is. */
export function requestHeaders(request: IncomingMessage): string[] {
  const headers = withForwardedFor(endToEnd(request), request);
  if (request.headers['transfer-encoding'] !== undefined) headers.push('Transfer-Encoding', 'chunked');
  else if (request.headers['content-length'] === undefined && bodyExpected(request.method)) {
    headers.push('Content-Length', '0');
  }
  return headers;
}

/** The head of a request that leaves HTTP (a WebSocket), hop-by-hop headers included: its other end is the service. */
export function upgradeHead(request: IncomingMessage): string {
  let head = `${request.method ?? 'GET'} ${request.url ?? '/'} HTTP/1.1\r\n`;
  for (const [name, value] of pairs(withForwardedFor(request.rawHeaders, request))) head += `${name}: ${value}\r\n`;
  return `${head}\r\n`;
}

export function hasBody(request: IncomingMessage): boolean {
  const length = request.headers['content-length'];
  return request.headers['transfer-encoding'] !== undefined || (length !== undefined && length !== '0');
}

function bodyExpected(method: string | undefined): boolean {
  return method === 'POST' || method === 'PUT' || method === 'PATCH';
}

function withForwardedFor(headers: readonly string[], request: IncomingMessage): string[] {
  const chain: string[] = [];
  const kept: string[] = [];
  for (const [name, value] of pairs(headers)) {
    if (name.toLowerCase() === 'x-forwarded-for') chain.push(value);
    else kept.push(name, value);
  }
  const client = request.socket.remoteAddress?.replace(/^::ffff:/, '');
  if (client !== undefined) chain.push(client);
  if (chain.length > 0) kept.push('X-Forwarded-For', chain.join(', '));
  return kept;
}

function* pairs(flat: readonly string[]): Generator<[string, string]> {
  for (let index = 0; index + 1 < flat.length; index += 2) yield [flat[index] ?? '', flat[index + 1] ?? ''];
}
