import { connect, createServer, type Server, type Socket } from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import { UmsError } from '#src/telemetry/errors.ts';
import type { FrontmanStatus, Limits } from './contract.ts';
import { FakePeer, freePort, LineClient, LineService, listening, SERVICE, until } from './frontmen.fixture.ts';

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

async function front(peer: FakePeer, port: number, holdLimit_ms = 5000): Promise<FrontmanStatus> {
  const listen = { address: '127.0.0.1', port: await freePort() };
  return peer.frontmen.add({ service: 'x', listen, port, mode: 'tcp', holdLimit_ms }, SERVICE);
}

async function serve(onSocket: (socket: Socket) => void): Promise<number> {
  const sockets = new Set<Socket>();
  const server: Server = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.add(socket);
    socket.on('error', () => socket.destroy());
    onSocket(socket);
  });
  cleanups.push(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return listening(server);
}

function client(port: number): { socket: Socket; text: () => string; ended: () => boolean; error: () => string } {
  const socket = connect({ host: '127.0.0.1', port, allowHalfOpen: true });
  let text = '';
  let error = '';
  let ended = false;
  socket.on('data', (chunk) => (text += chunk.toString()));
  socket.on('error', (thrown) => (error = thrown.message));
  socket.on('end', () => (ended = true));
  socket.on('close', () => (ended = true));
  cleanups.push(() => void socket.destroy());
  return { socket, text: () => text, ended: () => ended, error: () => error };
}

describe('moving under load', () => {
  test('every answered line is in the service, none reaches a copy that is held', async () => {
    const [alpha, beta] = await systems(['alpha', 'beta']);
    if (alpha === undefined || beta === undefined) throw new Error('no systems');
    const lines: string[] = [];
    const copies = { alpha: new LineService(lines), beta: new LineService(lines) };
    const port = await freePort();
    await copies.alpha.listen(port, '127.0.0.1');
    await copies.beta.listen(port, '127.0.0.2');
    cleanups.push(
      () => copies.alpha.close(),
      () => copies.beta.close(),
    );
    alpha.address = '127.0.0.1';
    copies.alpha.frozen = false;
    const { listen } = await front(alpha, port);
    const clients = Array.from({ length: 20 }, (_, index) => new LineClient(listen.port, `c${index}`));
    const running = clients.map((each) => each.run());
    const count = (): number => clients.reduce((sum, each) => sum + each.answered.length, 0);

    let [from, to] = [alpha, beta];
    for (let move = 0; move < 6; move += 1) {
      const before = count();
      await until(() => count() > before + 500, 'traffic');
      const [source, destination] = from === alpha ? [copies.alpha, copies.beta] : [copies.beta, copies.alpha];
      await from.frontmen.hold(SERVICE, `m-${move}`);
      source.frozen = true;
      const [heldAt, linesAt] = [count(), lines.length];
      await until(() => from.frontmen.list().every((each) => each.connections >= clients.length), 'clients waiting');
      expect(lines.length).toBe(linesAt);
      expect(count()).toBe(heldAt);
      to.address = to === alpha ? '127.0.0.1' : '127.0.0.2';
      from.address = undefined;
      destination.frozen = false;
      to.frontmen.setRoute(SERVICE, { kind: 'here' });
      from.frontmen.release(SERVICE, `m-${move}`, { kind: 'peer', peer: to.name });
      [from, to] = [to, from];
    }
    const before = count();
    await until(() => count() > before + 500, 'traffic at the end');
    for (const each of clients) each.stop();
    await Promise.all(running);

    expect(copies.alpha.violations + copies.beta.violations).toBe(0);
    const known = new Set(lines);
    for (const each of clients) {
      expect(each.answered.filter((line) => !known.has(line))).toEqual([]);
      expect(each.answered).toEqual(each.answered.map((_, index) => `${each.answered[0]?.split('-')[0]}-${index}`));
      expect(each.reconnects).toBe(6);
    }
  }, 30_000);
});

describe('holding', () => {
  test('survives a restart, and is released by its holder alone', async () => {
    const [alpha] = await systems(['alpha']);
    if (alpha === undefined) throw new Error('no system');
    const port = await serve((socket) => socket.end('hello'));
    alpha.address = '127.0.0.1';
    const { listen, id } = await front(alpha, port);
    await alpha.frontmen.hold(SERVICE, 'm-1');
    await alpha.frontmen.hold(SERVICE, 'm-1');
    await expect(alpha.frontmen.hold(SERVICE, 'm-2')).rejects.toMatchObject({ code: 'UMS_E_SERVICE_BUSY' });
    expect(() => alpha.frontmen.release(SERVICE, 'm-2', { kind: 'here' })).toThrow(UmsError);
    await alpha.restart();
    expect(alpha.frontmen.routeOf(SERVICE)).toEqual({ target: { kind: 'here' }, state: 'holding', holder: 'm-1' });
    const waiting = client(listen.port);
    await until(() => alpha.frontmen.list()[0]?.waiting === 1, 'a waiting connection');
    expect(alpha.frontmen.list()[0]).toMatchObject({ id, status: 'holding', target: 'here', waiting: 1 });
    await alpha.frontmen.hold(SERVICE, 'm-1');
    alpha.frontmen.release(SERVICE, 'm-1', { kind: 'here' });
    alpha.frontmen.release(SERVICE, 'm-1', { kind: 'here' });
    await until(waiting.ended, 'the answer');
    expect(waiting.text()).toBe('hello');
    await alpha.restart();
    expect(alpha.frontmen.routeOf(SERVICE)).toEqual({ target: { kind: 'here' }, state: 'open', holder: null });
  });

  test('refuses with a reset after the limit, counts it, and bounds how many wait', async () => {
    const [alpha] = await systems(['alpha'], { maxWaiting: 3 });
    if (alpha === undefined) throw new Error('no system');
    const { listen } = await front(alpha, 9, 150);
    await alpha.frontmen.hold(SERVICE, 'm-1');
    const clients = Array.from({ length: 5 }, () => client(listen.port));
    await until(() => clients.every((each) => each.ended()), 'five refusals');
    expect(clients.map((each) => each.error())).toEqual(Array.from({ length: 5 }, () => 'read ECONNRESET'));
    expect(alpha.frontmen.counters.values.get('refused_limit')).toBe(3);
    expect(alpha.frontmen.counters.values.get('refused_full')).toBe(2);
    expect(alpha.frontmen.list()[0]).toMatchObject({ waiting: 0, connections: 0 });
  });

  test('reads nothing from a client that waits', async () => {
    const [alpha] = await systems(['alpha']);
    if (alpha === undefined) throw new Error('no system');
    const size = 64 * 1024 * 1024;
    let received = 0;
    const port = await serve((socket) => {
      socket.on('data', (chunk) => (received += chunk.length));
      socket.on('end', () => socket.end(`${received}`));
    });
    alpha.address = '127.0.0.1';
    const { listen } = await front(alpha, port);
    await alpha.frontmen.hold(SERVICE, 'm-1');
    const sender = client(listen.port);
    sender.socket.end(Buffer.alloc(size));
    await until(() => alpha.frontmen.list()[0]?.waiting === 1, 'a waiting connection');
    const tcp_bytes = (): number => sender.socket.bytesWritten - sender.socket.writableLength;
    expect(tcp_bytes()).toBeLessThan(size / 2);
    expect(sender.socket.writableFinished).toBe(false);
    alpha.frontmen.release(SERVICE, 'm-1', { kind: 'here' });
    await until(sender.ended, 'the answer', 15_000);
    expect(sender.text()).toBe(`${size}`);
  }, 20_000);

  test('a slow reader slows the service, not the memory of the Frontman', async () => {
    const [alpha] = await systems(['alpha']);
    if (alpha === undefined) throw new Error('no system');
    let sent = 0;
    const chunk = Buffer.alloc(64 * 1024);
    const port = await serve((socket) => {
      const fill = (): void => {
        while (sent < 256 * 1024 * 1024) {
          sent += chunk.length;
          if (!socket.write(chunk)) break;
        }
      };
      socket.on('drain', fill);
      fill();
    });
    alpha.address = '127.0.0.1';
    const { listen } = await front(alpha, port);
    const slow = connect({ host: '127.0.0.1', port: listen.port });
    cleanups.push(() => void slow.destroy());
    slow.pause();
    let last = -1;
    await until(() => {
      const still = sent === last && sent > 0;
      last = sent;
      return still;
    }, 'the service being stopped by back-pressure');
    expect(sent).toBeLessThan(64 * 1024 * 1024);
  });

  test('lets the answer under way go out, then closes', async () => {
    const [alpha] = await systems(['alpha']);
    if (alpha === undefined) throw new Error('no system');
    const got: string[] = [];
    const port = await serve((socket) => {
      socket.on('data', (data) => {
        got.push(data.toString());
        setTimeout(() => socket.write('first '), 5);
        setTimeout(() => socket.write('second'), 15);
      });
      socket.on('end', () => socket.end());
    });
    alpha.address = '127.0.0.1';
    const { listen } = await front(alpha, port);
    const asker = client(listen.port);
    asker.socket.write('ask');
    await until(() => got.length === 1, 'the question at the service');
    const start = performance.now();
    await alpha.frontmen.hold(SERVICE, 'm-1');
    expect(performance.now() - start).toBeLessThan(400);
    await until(asker.ended, 'the end');
    expect(asker.text()).toBe('first second');
    expect(asker.error()).toBe('');
    expect(got).toEqual(['ask']);
  });

  test('closes a connection that is never quiet within the limit', async () => {
    const [alpha] = await systems(['alpha']);
    if (alpha === undefined) throw new Error('no system');
    const port = await serve((socket) => {
      const timer = setInterval(() => socket.write('tick'), 2);
      socket.on('close', () => clearInterval(timer));
    });
    alpha.address = '127.0.0.1';
    const { listen } = await front(alpha, port);
    const listener = client(listen.port);
    await until(() => listener.text() !== '', 'ticks');
    const start = performance.now();
    await alpha.frontmen.hold(SERVICE, 'm-1');
    expect(performance.now() - start).toBeLessThan(600);
    await until(listener.ended, 'the end');
  });
});

describe('the way there', () => {
  test('passes each direction’s end for itself', async () => {
    const [alpha] = await systems(['alpha']);
    if (alpha === undefined) throw new Error('no system');
    const port = await serve((socket) => {
      let all = '';
      socket.on('data', (data) => (all += data.toString()));
      socket.on('end', () => socket.end(`got ${all}`));
    });
    alpha.address = '127.0.0.1';
    const { listen } = await front(alpha, port);
    const half = client(listen.port);
    half.socket.end('question');
    await until(half.ended, 'the answer');
    expect(half.text()).toBe('got question');
    await until(() => alpha.frontmen.list()[0]?.connections === 0, 'no connection left');
  });

  test('follows two hops, and the far side holds as well', async () => {
    const [alpha, beta, gamma] = await systems(['alpha', 'beta', 'gamma']);
    if (alpha === undefined || beta === undefined || gamma === undefined) throw new Error('no systems');
    const port = await serve((socket) => socket.end('from gamma'));
    gamma.address = '127.0.0.1';
    alpha.frontmen.setRoute(SERVICE, { kind: 'peer', peer: 'beta' });
    beta.frontmen.setRoute(SERVICE, { kind: 'peer', peer: 'gamma' });
    await gamma.frontmen.hold(SERVICE, 'm-1');
    const { listen } = await front(alpha, port);
    const asker = client(listen.port);
    await until(() => gamma.headers.length === 1, 'the stream at gamma');
    expect(asker.ended()).toBe(false);
    gamma.frontmen.release(SERVICE, 'm-1', { kind: 'here' });
    await until(asker.ended, 'the answer');
    expect(asker.text()).toBe('from gamma');
    expect(beta.headers.map((header) => header.hops)).toEqual([3]);
    expect(gamma.headers.map((header) => header.hops)).toEqual([2]);
  });

  test('refuses a loop', async () => {
    const [alpha, beta, gamma] = await systems(['alpha', 'beta', 'gamma']);
    if (alpha === undefined || beta === undefined || gamma === undefined) throw new Error('no systems');
    alpha.frontmen.setRoute(SERVICE, { kind: 'peer', peer: 'beta' });
    beta.frontmen.setRoute(SERVICE, { kind: 'peer', peer: 'gamma' });
    gamma.frontmen.setRoute(SERVICE, { kind: 'peer', peer: 'alpha' });
    const { listen } = await front(alpha, 9);
    const asker = client(listen.port);
    await until(asker.ended, 'the refusal');
    expect(alpha.frontmen.counters.values.get('refused_hops')).toBeGreaterThan(0);
    expect(beta.headers.map((header) => header.hops)).toEqual([3, 0]);
  });

  test('a stream that leads back waits until this system knows better', async () => {
    const [alpha, beta] = await systems(['alpha', 'beta']);
    if (alpha === undefined || beta === undefined) throw new Error('no systems');
    const port = await serve((socket) => socket.end('at home'));
    alpha.frontmen.setRoute(SERVICE, { kind: 'peer', peer: 'beta' });
    beta.frontmen.setRoute(SERVICE, { kind: 'peer', peer: 'alpha' });
    const { listen } = await front(alpha, port);
    const asker = client(listen.port);
    await until(() => beta.headers.length >= 2, 'a second try');
    alpha.address = '127.0.0.1';
    alpha.frontmen.setRoute(SERVICE, { kind: 'here' });
    await until(asker.ended, 'the answer');
    expect(asker.text()).toBe('at home');
  });

  test('a malformed header and a service nobody knows are answered', async () => {
    const [alpha, beta] = await systems(['alpha', 'beta']);
    if (alpha === undefined || beta === undefined) throw new Error('no systems');
    alpha.frontmen.setRoute('unknown', { kind: 'peer', peer: 'beta' });
    const listen = { address: '127.0.0.1', port: await freePort() };
    await alpha.frontmen.add({ service: 'u', listen, port: 1, mode: 'tcp', holdLimit_ms: 0 }, 'unknown');
    const asker = client(listen.port);
    await until(asker.ended, 'the refusal');
    expect(alpha.frontmen.counters.values.get('refused_absent')).toBe(1);
    expect(beta.frontmen.routeOf('unknown')).toBeUndefined();
    const [here, there] = await pair();
    beta.frontmen.acceptPeerStream('alpha', { kind: 'nonsense' }, there);
    let answer = -1;
    here.on('data', (data) => (answer = data[0] ?? -1));
    await until(() => answer !== -1, 'the answer byte');
    expect(answer).toBe(7);
  });

  test('tries again while a released service does not listen yet', async () => {
    const [alpha] = await systems(['alpha']);
    if (alpha === undefined) throw new Error('no system');
    const port = await freePort();
    const { listen } = await front(alpha, port);
    await alpha.frontmen.hold(SERVICE, 'm-1');
    const asker = client(listen.port);
    await until(() => alpha.frontmen.list()[0]?.waiting === 1, 'a waiting connection');
    let asked = 0;
    Object.defineProperty(alpha, 'address', {
      get: () => {
        asked += 1;
        return '127.0.0.1';
      },
    });
    alpha.frontmen.release(SERVICE, 'm-1', { kind: 'here' });
    await until(() => asked >= 3, 'three tries');
    const service = new LineService([]);
    service.frozen = false;
    await service.listen(port, '127.0.0.1');
    cleanups.push(() => service.close());
    asker.socket.write('late\n');
    await until(() => asker.text() === 'late\n', 'the answer');
  });

  test('a client that resets while it waits leaves nothing behind', async () => {
    const [alpha] = await systems(['alpha']);
    if (alpha === undefined) throw new Error('no system');
    const lines: string[] = [];
    const service = new LineService(lines);
    service.frozen = false;
    const port = await freePort();
    await service.listen(port, '127.0.0.1');
    cleanups.push(() => service.close());
    alpha.address = '127.0.0.1';
    const { listen } = await front(alpha, port);
    await alpha.frontmen.hold(SERVICE, 'm-1');
    const leaver = client(listen.port);
    await until(() => alpha.frontmen.list()[0]?.waiting === 1, 'a waiting connection');
    leaver.socket.resetAndDestroy();
    alpha.frontmen.release(SERVICE, 'm-1', { kind: 'here' });
    await until(() => alpha.frontmen.list()[0]?.connections === 0, 'no connection left');
    expect(lines).toEqual([]);
  });
});

describe('setting up', () => {
  test('a taken port and a foreign address are refused with a mend', async () => {
    const [alpha] = await systems(['alpha']);
    if (alpha === undefined) throw new Error('no system');
    const taken = await serve((socket) => socket.end());
    const ask = { service: 'x', port: 1, mode: 'tcp' as const, holdLimit_ms: 0 };
    const inUse = alpha.frontmen.add({ ...ask, listen: { address: '127.0.0.1', port: taken } }, SERVICE);
    await expect(inUse).rejects.toMatchObject({ code: 'UMS_E_PORT_TAKEN', mend: expect.stringContaining('ss -ltnp') });
    const foreign = alpha.frontmen.add({ ...ask, listen: { address: '192.0.2.1', port: taken } }, SERVICE);
    await expect(foreign).rejects.toMatchObject({ code: 'UMS_E_FRONTMAN', mend: expect.stringContaining('0.0.0.0') });
    const { listen, id } = await front(alpha, 1);
    await expect(alpha.frontmen.add({ ...ask, listen }, SERVICE)).rejects.toMatchObject({ code: 'UMS_E_PORT_TAKEN' });
    expect(alpha.frontmen.list()).toHaveLength(1);
    await alpha.frontmen.remove(id);
    await expect(alpha.frontmen.remove(id)).rejects.toMatchObject({ code: 'UMS_E_FRONTMAN' });
    await alpha.restart();
    expect(alpha.frontmen.list()).toEqual([]);
  });
});

async function pair(): Promise<[Socket, Socket]> {
  let far: Socket | undefined;
  const port = await serve((socket) => (far = socket));
  const near = connect({ host: '127.0.0.1', port });
  cleanups.push(() => void near.destroy());
  await until(() => far !== undefined, 'a pair of sockets');
  if (far === undefined) throw new Error('no pair');
  return [near, far];
}
