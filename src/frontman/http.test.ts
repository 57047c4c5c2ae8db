import { Agent, createServer, type IncomingMessage, request, type RequestListener } from 'node:http';
import { connect } from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import { errorReportSchema } from '#src/telemetry/errors.ts';
import { z } from 'zod';
import type { FrontmanStatus, Limits } from './contract.ts';
import { FakePeer, freePort, SERVICE, until } from './frontmen.fixture.ts';

const cleanups: (() => Promise<unknown> | void)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) await cleanup();
});

async function systems(names: readonly string[], limits: Partial<Limits> = {}): Promise<FakePeer[]> {
  const net = new Map<string, FakePeer>();
  const peers = await Promise.all(names.map((name) => new FakePeer(name, net, limits).start()));
  cleanups.push(...peers.map((peer) => () => peer.close()));
  return peers;
}

async function alone(limits: Partial<Limits> = {}): Promise<FakePeer> {
  const [alpha] = await systems(['alpha'], limits);
  if (alpha === undefined) throw new Error('no system');
  alpha.address = '127.0.0.1';
  return alpha;
}

async function front(peer: FakePeer, port: number, holdLimit_ms = 5000): Promise<FrontmanStatus> {
  const listen = { address: '127.0.0.1', port: await freePort() };
  return peer.frontmen.add({ service: 'x', listen, port, mode: 'http', holdLimit_ms }, SERVICE);
}

async function serve(listener: RequestListener, host = '127.0.0.1', port = 0): Promise<number> {
  const server = createServer(listener);
  server.on('upgrade', (upgrade, socket) => {
    socket.write(
      `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${upgrade.headers.upgrade}\r\n\r\n`,
    );
    socket.on('error', () => socket.destroy());
    socket.pipe(socket);
  });
  cleanups.push(() => {
    server.closeAllConnections();
    server.close();
  });
  await new Promise<void>((resolve) => server.listen(port, host, resolve));
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('the server has no port');
  return address.port;
}

async function textOf(message: IncomingMessage): Promise<string> {
  let text = '';
  for await (const chunk of message) text += String(chunk);
  return text;
}

interface Answer {
  status: number;
  headers: IncomingMessage['headers'];
  trailers: IncomingMessage['trailers'];
  text: string;
}

interface Call {
  method?: string;
  headers?: Record<string, string>;
  body?: string;
  agent?: Agent;
  path?: string;
}

function call(port: number, what: Call = {}): Promise<Answer> {
  const { body, ...options } = what;
  return new Promise((resolve, reject) => {
    const out = request({ host: '127.0.0.1', port, ...options }, (answer) => {
      textOf(answer).then(
        (text) => resolve({ status: answer.statusCode ?? 0, headers: answer.headers, trailers: answer.trailers, text }),
        reject,
      );
    });
    out.on('error', reject);
    out.end(body);
  });
}

function changing(line: string): boolean {
  return !line.startsWith('GET ');
}

function nothing(): void {
  return;
}

/** Remembers each number it is told, and counts what reaches it while it is frozen. */
class NumberService {
  readonly seen: string[];
  readonly serve: RequestListener;
  frozen = true;
  violations = 0;

  constructor(seen: string[]) {
    this.seen = seen;
    this.serve = (incoming, response) => {
      if (this.frozen) this.violations += 1;
      void textOf(incoming).then((body) => {
        if (this.frozen) this.violations += 1;
        this.seen.push(`${incoming.method} ${incoming.url} ${body}`);
        response.end(`${incoming.method} ${incoming.url} ${body}`);
      });
    };
  }
}

test('moving under load: every request is answered with success and done exactly once, over connections that stay', async () => {
  const [alpha, beta] = await systems(['alpha', 'beta']);
  if (alpha === undefined || beta === undefined) throw new Error('no systems');
  const seen: string[] = [];
  const copies = { alpha: new NumberService(seen), beta: new NumberService(seen) };
  const port = await serve(copies.alpha.serve, '127.0.0.1');
  await serve(copies.beta.serve, '127.0.0.2', port);
  alpha.address = '127.0.0.1';
  copies.alpha.frozen = false;
  const { listen } = await front(alpha, port);
  const answered: string[] = [];
  const wrong: unknown[] = [];
  const sockets = new Set<unknown>();
  const stop = new AbortController();
  const methods = ['POST', 'PUT', 'DELETE', 'PATCH', 'GET'];
  const worker = async (name: number): Promise<void> => {
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    cleanups.push(() => agent.destroy());
    agent.on('free', (socket: unknown) => sockets.add(socket));
    for (let number = 0; !stop.signal.aborted; number += 1) {
      const method = methods[number % methods.length] ?? 'GET';
      const path = `/${name}/${number}`;
      const body = method === 'GET' ? '' : `body-${number}`;
      const headers: Record<string, string> = number % 2 === 0 && body !== '' ? { 'Transfer-Encoding': 'chunked' } : {};
      if (headers['Transfer-Encoding'] === undefined && body !== '') headers['Content-Length'] = `${body.length}`;
      const answer = await call(listen.port, { method, path, body, headers, agent });
      if (answer.status !== 200 || answer.text !== `${method} ${path} ${body}`) wrong.push(answer);
      answered.push(`${method} ${path} ${body}`);
    }
  };
  const workers = Array.from({ length: 10 }, (_, name) => worker(name));
  let [from, to] = [alpha, beta];
  for (let move = 0; move < 6; move += 1) {
    const before = answered.length;
    await until(() => answered.length > before + 200, 'traffic');
    const [source, destination] = from === alpha ? [copies.alpha, copies.beta] : [copies.beta, copies.alpha];
    await from.frontmen.hold(SERVICE, `m-${move}`);
    source.frozen = true;
    const seenAt = seen.length;
    if (from === alpha) await until(() => alpha.frontmen.list()[0]?.waiting === workers.length, 'requests waiting');
    expect(seen.length).toBe(seenAt);
    to.address = to === alpha ? '127.0.0.1' : '127.0.0.2';
    from.address = undefined;
    destination.frozen = false;
    to.frontmen.setRoute(SERVICE, { kind: 'here' });
    from.frontmen.release(SERVICE, `m-${move}`, { kind: 'peer', peer: to.name });
    [from, to] = [to, from];
  }
  stop.abort();
  await Promise.all(workers);
  expect(wrong).toEqual([]);
  expect(copies.alpha.violations + copies.beta.violations).toBe(0);
  expect(sockets.size).toBe(workers.length);
  // A GET may have been sent twice; everything else exactly once.
  expect(seen.filter(changing).toSorted()).toEqual(answered.filter(changing).toSorted());
  expect(new Set(seen)).toEqual(new Set(answered));
}, 30_000);

describe('what is passed on', () => {
  test('headers end to end, repeated ones too, hop-by-hop ones not, and who the client is', async () => {
    const alpha = await alone();
    let got: string[] = [];
    const port = await serve((incoming, response) => {
      got = incoming.rawHeaders;
      response.writeHead(418, 'Short and stout', [
        ['Set-Cookie', 'a=1'],
        ['Set-Cookie', 'b=2'],
        ['X-Mine', 'yes'],
        ['Connection', 'x-secret'],
        ['X-Secret', 'hop'],
        ['Trailer', 'X-Sum'],
      ]);
      response.write('tea');
      response.addTrailers({ 'X-Sum': '3' });
      response.end();
    });
    const { listen } = await front(alpha, port);
    const headers = { Connection: 'X-Hop', 'X-Hop': '1', TE: 'trailers', 'X-Forwarded-For': '10.1.1.1', Host: 'shop' };
    const answer = await call(listen.port, { headers });
    expect(answer).toMatchObject({ status: 418, text: 'tea', trailers: { 'x-sum': '3' } });
    expect(answer.headers['set-cookie']).toEqual(['a=1', 'b=2']);
    expect(answer.headers).toMatchObject({ 'x-mine': 'yes' });
    expect(answer.headers).not.toHaveProperty('x-secret');
    const lower = got.map((each) => each.toLowerCase());
    expect(lower).not.toContain('x-hop');
    expect(lower).not.toContain('te');
    expect(got[lower.indexOf('host') + 1]).toBe('shop');
    expect(got[lower.indexOf('x-forwarded-for') + 1]).toBe('10.1.1.1, 127.0.0.1');
  });

  test('HEAD, 204, 304 and Expect: 100-continue', async () => {
    const alpha = await alone();
    const port = await serve((incoming, response) => {
      if (incoming.url === '/204') response.writeHead(204).end();
      else if (incoming.url === '/304') response.writeHead(304, { ETag: '"e"' }).end();
      else if (incoming.method === 'HEAD') response.writeHead(200, { 'Content-Length': '1234' }).end();
      else incoming.pipe(response);
    });
    const { listen } = await front(alpha, port);
    expect(await call(listen.port, { path: '/204' })).toMatchObject({ status: 204, text: '' });
    expect(await call(listen.port, { path: '/304' })).toMatchObject({ status: 304, headers: { etag: '"e"' } });
    const head = await call(listen.port, { method: 'HEAD' });
    expect(head).toMatchObject({ status: 200, headers: { 'content-length': '1234' } });
    const echoed = await new Promise<string>((resolve, reject) => {
      const headers = { Expect: '100-continue', 'Content-Length': '5' };
      const out = request({ host: '127.0.0.1', port: listen.port, method: 'POST', headers }, (answer) => {
        textOf(answer).then(resolve, reject);
      });
      out.on('error', reject);
      out.on('continue', () => out.end('after'));
      out.flushHeaders();
    });
    expect(echoed).toBe('after');
  });

  test('bodies both ways as streams', async () => {
    const alpha = await alone();
    const port = await serve((incoming, response) => void incoming.pipe(response));
    const { listen } = await front(alpha, port);
    const pieces: string[] = [];
    await new Promise<void>((resolve, reject) => {
      const out = request({ host: '127.0.0.1', port: listen.port, method: 'POST' }, (answer) => {
        answer.on('data', (piece) => {
          pieces.push(String(piece));
          if (pieces.length === 1) out.end('two');
        });
        answer.on('end', resolve);
      });
      out.on('error', reject);
      out.write('one');
    });
    expect(pieces).toEqual(['one', 'two']);
  });

  test('an upgraded connection, which a hold closes', async () => {
    const alpha = await alone();
    const port = await serve((_, response) => response.end());
    const { listen } = await front(alpha, port);
    const socket = connect({ host: '127.0.0.1', port: listen.port });
    cleanups.push(() => void socket.destroy());
    let text = '';
    let ended = false;
    socket.on('data', (chunk) => (text += chunk.toString()));
    socket.on('end', () => (ended = true));
    socket.write('GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n');
    await until(() => text.includes('\r\n\r\n'), 'the switch');
    expect(text).toMatch(/^HTTP\/1.1 101 .*Upgrade: websocket/s);
    socket.write('ping');
    await until(() => text.endsWith('ping'), 'the echo');
    await alpha.frontmen.hold(SERVICE, 'm-1');
    await until(() => ended, 'the end');
  });
});

describe('holding', () => {
  test('refuses with 503 after the limit, and the connection stays', async () => {
    const alpha = await alone();
    const port = await serve((_, response) => response.end('fine'));
    const { listen } = await front(alpha, port, 100);
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    cleanups.push(() => agent.destroy());
    await alpha.frontmen.hold(SERVICE, 'm-1');
    const answer = await call(listen.port, { method: 'POST', body: 'x', agent });
    expect(answer).toMatchObject({ status: 503, headers: { 'retry-after': '1', 'cache-control': 'no-store' } });
    const { error } = z.object({ error: errorReportSchema }).parse(JSON.parse(answer.text));
    expect(error.code).toBe('UMS_E_TIMEOUT');
    alpha.frontmen.release(SERVICE, 'm-1', { kind: 'here' });
    expect(await call(listen.port, { agent })).toMatchObject({ status: 200, text: 'fine' });
    expect(alpha.frontmen.list()[0]?.connections).toBe(1);
    expect(alpha.frontmen.counters.values.get('refused_limit')).toBe(1);
  });

  test('lets a request in flight finish', async () => {
    const alpha = await alone();
    let answer = nothing;
    const port = await serve((_, response) => {
      answer = () => void response.end('finished');
      response.write('just ');
    });
    const { listen } = await front(alpha, port);
    for (const method of ['GET', 'POST']) {
      answer = nothing;
      const asked = call(listen.port, { method });
      await until(() => answer !== nothing, 'the request at the service');
      let held = false;
      const holding = alpha.frontmen.hold(SERVICE, 'm-1').then(() => (held = true));
      const late = call(listen.port, { method });
      await until(() => alpha.frontmen.list()[0]?.waiting === 1, 'a waiting request');
      expect(held).toBe(false);
      answer();
      expect(await asked).toMatchObject({ status: 200, text: 'just finished' });
      await holding;
      answer = nothing;
      alpha.frontmen.release(SERVICE, 'm-1', { kind: 'here' });
      await until(() => answer !== nothing, 'the late request at the service');
      answer();
      expect(await late).toMatchObject({ status: 200 });
    }
  });

  test('cuts a request that does not finish; GET is sent again, POST is answered with 502', async () => {
    const alpha = await alone({ httpDrain_ms: 100 });
    const seen: string[] = [];
    let answers = false;
    const port = await serve((incoming, response) => {
      seen.push(incoming.method ?? '');
      if (answers) response.end('at last');
    });
    const { listen } = await front(alpha, port);
    const get = call(listen.port);
    const post = call(listen.port, { method: 'POST', body: 'x' });
    await until(() => seen.length === 2, 'both at the service');
    await alpha.frontmen.hold(SERVICE, 'm-1');
    expect(await post).toMatchObject({ status: 502 });
    answers = true;
    alpha.frontmen.release(SERVICE, 'm-1', { kind: 'here' });
    expect(await get).toMatchObject({ status: 200, text: 'at last' });
    expect(seen.toSorted()).toEqual(['GET', 'GET', 'POST']);
    expect(alpha.frontmen.counters.values.get('replayed')).toBe(1);
  });

  test('a client that leaves while it waits is forgotten, and the service never sees its request', async () => {
    const alpha = await alone();
    const seen: (string | undefined)[] = [];
    const port = await serve((incoming, response) => {
      seen.push(incoming.url);
      response.end();
    });
    const { listen } = await front(alpha, port);
    await alpha.frontmen.hold(SERVICE, 'm-1');
    const leaver = request({ host: '127.0.0.1', port: listen.port, path: '/leaver' });
    leaver.on('error', () => undefined);
    leaver.end();
    await until(() => alpha.frontmen.list()[0]?.waiting === 1, 'a waiting request');
    leaver.destroy();
    await until(() => alpha.frontmen.list()[0]?.waiting === 0, 'the request being forgotten');
    alpha.frontmen.release(SERVICE, 'm-1', { kind: 'here' });
    await call(listen.port, { path: '/stayer' });
    expect(seen).toEqual(['/stayer']);
  });
});

describe('when the service fails', () => {
  test('502 where nobody listens, at once', async () => {
    const alpha = await alone();
    const { listen } = await front(alpha, await freePort());
    const answer = await call(listen.port);
    expect(answer.status).toBe(502);
    expect(answer.headers).not.toHaveProperty('retry-after');
  });

  test('an answer that breaks off breaks off for the client as well', async () => {
    const alpha = await alone();
    const port = await serve((_, response) => {
      response.writeHead(200, { 'Content-Length': '100' });
      response.write('half', () => response.destroy());
    });
    const { listen } = await front(alpha, port);
    await expect(call(listen.port)).rejects.toThrow(/aborted|hang up|ECONNRESET/);
  });
});
