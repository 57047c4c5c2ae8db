import { EventEmitter, once } from 'node:events';
import { buffer } from 'node:stream/consumers';
import { afterEach, describe, expect, it } from 'vitest';
import { z } from 'zod';
import { UmsError } from '#src/telemetry/errors.ts';
import { failureOf, pair, until } from '#src/trust/trust.fixture.ts';
import { TestProxy } from './proxy.fixture.ts';
import { openSystem, type TestOptions, type TestSystem } from './channel.fixture.ts';

const closing: { close(): Promise<void> }[] = [];
afterEach(async () => {
  for (const one of closing.splice(0)) await one.close();
});

async function systems(options: TestOptions = {}): Promise<{ alpha: TestSystem; beta: TestSystem }> {
  const alpha = await openSystem('alpha', options);
  const beta = await openSystem('beta', options);
  closing.push(beta, alpha);
  await pair(alpha, beta);
  return { alpha, beta };
}

/** As systems, with a proxy in beta's way to alpha. */
async function apart(options: TestOptions = {}): Promise<{ alpha: TestSystem; beta: TestSystem; proxy: TestProxy }> {
  const { alpha, beta } = await systems(options);
  const proxy = await TestProxy.open(alpha.trust.port);
  closing.push(proxy);
  beta.db.prepare('UPDATE trust_peers SET port = ? WHERE name = ?').run(proxy.port, 'alpha');
  return { alpha, beta, proxy };
}

const kind = <K extends string>(name: K) => z.object({ kind: z.literal(name) });
const anything = z.unknown();
const MIB = 1024 * 1024;

async function* zeros(count: number, onPiece: () => void = () => undefined): AsyncGenerator<Buffer> {
  const piece = Buffer.alloc(256 * 1024);
  for (let index = 0; index < count; index += 1) {
    onPiece();
    yield piece;
  }
}

async function* pausing(): AsyncGenerator<Buffer> {
  yield Buffer.alloc(10);
  await new Promise((resolve) => setTimeout(resolve, 1000));
  yield Buffer.alloc(10);
}

async function* failing(): AsyncGenerator<Buffer> {
  yield Buffer.alloc(10);
  throw new UmsError('UMS_E_DUMP', { message: 'no more', fault: 'source' });
}

function refuse(): never {
  throw new UmsError('UMS_E_MIGRATION_UNKNOWN', { message: 'none', fault: 'user' });
}

function countKind(system: TestSystem): { error: unknown; whole: boolean } {
  const seen: { error: unknown; whole: boolean } = { error: undefined, whole: false };
  system.server.handleOneway('count', kind('count'), async ({ body, peer }) => {
    let bytes = 0;
    try {
      for await (const chunk of body) bytes += chunk.length;
    } catch (error) {
      seen.error = error;
      throw error;
    }
    seen.whole = true;
    return { bytes, peer };
  });
  return seen;
}

describe('control messages', () => {
  it('reach the peer and bring its answer, both ways', async () => {
    const { alpha, beta } = await systems();
    alpha.respond = (path) => ({ status: 200, body: JSON.stringify({ path }) });
    const schema = z.object({ path: z.string() });
    expect(await beta.client.request('alpha', { method: 'GET', path: '/a', schema })).toEqual({ path: '/a' });
    const body = { text: 'x'.repeat(100_000) };
    await alpha.client.request('beta', { method: 'POST', path: '/b', body, schema: anything });
    expect(beta.requests).toEqual(['POST /b']);
  });

  it('share a connection while it is in use', async () => {
    const { beta, proxy } = await apart();
    for (let count = 0; count < 5; count += 1) {
      await beta.client.request('alpha', { method: 'GET', path: '/', schema: anything });
    }
    expect(proxy.connections).toBe(1);
  });

  it('bring the errors of the other side as they were', async () => {
    const { alpha, beta } = await systems();
    const error = new UmsError('UMS_E_NO_ROOM', { message: 'full', fault: 'destination', state: 's', mend: 'm' });
    alpha.respond = () => ({ status: 409, body: JSON.stringify({ error: error.toReport() }) });
    const failure = await beta.client.request('alpha', { method: 'GET', path: '/', schema: anything }).catch((e) => e);
    expect(failure).toMatchObject({ code: 'UMS_E_NO_ROOM', message: 'full', fault: 'destination', mend: 'm' });
  });

  it('with a malformed or oversized answer are refused', async () => {
    const { alpha, beta } = await systems();
    const ask = async (status: number, body: string | Buffer): Promise<string> => {
      alpha.respond = () => ({ status, body });
      return (await failureOf(beta.client.request('alpha', { method: 'GET', path: '/', schema: kind('x') }))).code;
    };
    expect(await ask(200, '{"kind":"y"}')).toBe('UMS_E_PEER_MESSAGE');
    expect(await ask(200, '{')).toBe('UMS_E_PEER_MESSAGE');
    expect(await ask(500, '{"error":"no"}')).toBe('UMS_E_PEER_MESSAGE');
    expect(await ask(200, Buffer.alloc(9 * MIB, 0x20))).toBe('UMS_E_PEER_MESSAGE');
  });

  it('with oversized headers are refused before the handler', async () => {
    const { alpha, beta } = await systems();
    const path = `/${'x'.repeat(20_000)}`;
    const failure = await failureOf(beta.client.request('alpha', { method: 'GET', path, schema: anything }));
    expect(failure.code).toBe('UMS_E_PEER_MESSAGE');
    expect(alpha.requests).toEqual([]);
  });

  it('end when the handler takes too long, though it is alive, and when the caller gives up', async () => {
    const { beta } = await systems({ limits: { idle_ms: 400 } });
    const slow = { method: 'GET', path: '/never', schema: anything } as const;
    const failure = await failureOf(beta.client.request('alpha', { ...slow, timeout_ms: 1300 }));
    expect(failure.code).toBe('UMS_E_TIMEOUT');
    const signal = AbortSignal.timeout(20);
    const given = await failureOf(beta.client.request('alpha', { ...slow, signal }));
    expect(given.code).toBe('UMS_E_TIMEOUT');
  });

  it('find out that nobody listens, and that the network swallows everything', async () => {
    const { alpha, beta, proxy } = await apart({ limits: { idle_ms: 300 } });
    await beta.client.request('alpha', { method: 'GET', path: '/', schema: anything });
    proxy.faultAfter_bytes = 0;
    // Over the connection that is open still, and over a new one.
    for (let attempt = 0; attempt < 2; attempt += 1) {
      const failure = await failureOf(beta.client.request('alpha', { method: 'GET', path: '/', schema: anything }));
      expect(failure.code).toBe('UMS_E_PEER_UNREACHABLE');
    }
    expect((await failureOf(beta.client.ping('alpha'))).code).toBe('UMS_E_PEER_UNREACHABLE');
    await alpha.server.close();
    await proxy.close();
    expect((await failureOf(beta.client.ping('alpha'))).code).toBe('UMS_E_PEER_UNREACHABLE');
  });
});

describe('one-way streams', () => {
  it('arrive whole and bring the trailer', async () => {
    const { alpha, beta } = await systems();
    countKind(alpha);
    let counted = 0;
    let wire = 0;
    const result = await beta.client.send('alpha', { kind: 'count' }, zeros(40), {
      onBytes: (bytes) => (counted += bytes),
      onWire: (bytes) => (wire += bytes),
    });
    expect(result).toEqual({ trailer: { bytes: 10 * MIB, peer: 'beta' }, bytes: 10 * MIB });
    expect(counted).toBe(10 * MIB);
    await until(() => wire > 10 * MIB, 'the bytes on the wire are reported');
    expect(wire).toBeLessThan(10.2 * MIB);
  });

  it('of an unknown kind, or with a header of the wrong shape or size, are refused', async () => {
    const { alpha, beta } = await systems();
    alpha.server.handleOneway('sized', z.object({ kind: z.literal('sized'), size: z.int() }), () => ({}));
    const send = async (header: { kind: string; size?: unknown }): Promise<string> =>
      (await failureOf(beta.client.send('alpha', header, zeros(1)))).code;
    expect(await send({ kind: 'nothing' })).toBe('UMS_E_PEER_VERSION');
    expect(await send({ kind: 'sized', size: 'x' })).toBe('UMS_E_PEER_MESSAGE');
    expect(await send({ kind: 'sized', size: 'x'.repeat(70_000) })).toBe('UMS_E_PEER_MESSAGE');
  });

  it('make a sender that does not end stop when the receiver fails', async () => {
    const { alpha, beta } = await systems();
    alpha.server.handleOneway('full', kind('full'), async ({ body }) => {
      let bytes = 0;
      for await (const chunk of body) {
        bytes += chunk.length;
        if (bytes > MIB) throw new UmsError('UMS_E_NO_ROOM', { message: 'disk full', fault: 'destination' });
      }
    });
    expect((await failureOf(beta.client.send('alpha', { kind: 'full' }, zeros(1_000_000)))).code).toBe('UMS_E_NO_ROOM');
  });

  it('do not let a sender run ahead of a slow receiver', async () => {
    const { alpha, beta } = await systems();
    const gate = new EventEmitter();
    const opened = once(gate, 'open');
    alpha.server.handleOneway('slow', kind('slow'), async ({ body }) => {
      let bytes = 0;
      for await (const chunk of body) {
        if (bytes === 0) await opened;
        bytes += chunk.length;
      }
      return bytes;
    });
    let pieces = 0;
    const sending = beta.client.send(
      'alpha',
      { kind: 'slow' },
      zeros(400, () => (pieces += 1)),
    );
    let before = -1;
    // Runs until the sender has stood still for a while.
    for (let round = 0; round < 100 && before !== pieces; round += 1) {
      before = pieces;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    // What is left is the kernel's socket buffers and what the two ends may hold.
    expect(pieces).toBeLessThan(100);
    gate.emit('open');
    expect((await sending).trailer).toBe(100 * MIB);
  });

  it('broken on the way are known as such at both ends', async () => {
    for (const fault of ['flip', 'cut'] as const) {
      const { alpha, beta, proxy } = await apart();
      const seen = countKind(alpha);
      proxy.fault = fault;
      proxy.faultAfter_bytes = MIB;
      const failure = await failureOf(beta.client.send('alpha', { kind: 'count' }, zeros(100)));
      expect(['UMS_E_TRANSFER', 'UMS_E_PEER_UNREACHABLE']).toContain(failure.code);
      await until(() => seen.error !== undefined, 'the receiver knows');
      expect(seen.error).toMatchObject({ code: 'UMS_E_TRANSFER' });
      expect(seen.whole).toBe(false);
    }
  });

  it('notice a network that swallows everything, and a peer that is only slow not', async () => {
    const { alpha, beta, proxy } = await apart({ limits: { idle_ms: 300 } });
    const seen = countKind(alpha);
    expect((await beta.client.send('alpha', { kind: 'count' }, pausing())).bytes).toBe(20);
    seen.whole = false;
    proxy.faultAfter_bytes = proxy.passed_bytes + 4 * MIB;
    const failure = await failureOf(beta.client.send('alpha', { kind: 'count' }, zeros(1000)));
    expect(failure.code).toBe('UMS_E_PEER_UNREACHABLE');
    // Whichever end notices first closes the connection, which is what the other one then sees.
    await until(() => seen.error !== undefined, 'the receiver knows');
    expect(seen.whole).toBe(false);
  });

  it('end when the sender gives up or its source fails', async () => {
    const { alpha, beta } = await systems();
    const seen = countKind(alpha);
    const controller = new AbortController();
    const sending = beta.client.send('alpha', { kind: 'count' }, zeros(1_000_000), { signal: controller.signal });
    setTimeout(() => controller.abort(), 50);
    expect((await failureOf(sending)).code).toBe('UMS_E_CANCELLED');
    await until(() => seen.error !== undefined, 'the receiver knows');
    expect((await failureOf(beta.client.send('alpha', { kind: 'count' }, failing()))).code).toBe('UMS_E_DUMP');
    expect(seen.whole).toBe(false);
  });
});

describe('duplex streams', () => {
  it('carry both directions, each ended on its own', async () => {
    const { alpha, beta } = await systems();
    alpha.server.handleDuplex('upper', kind('upper'), async (_context, stream) => {
      const all = await buffer(stream);
      stream.end(all.toString().toUpperCase());
    });
    const stream = await beta.client.openDuplex('alpha', { kind: 'upper' });
    stream.write('half ');
    stream.end('open');
    expect((await buffer(stream)).toString()).toBe('HALF OPEN');
    const large = await beta.client.openDuplex('alpha', { kind: 'upper' });
    large.end(Buffer.alloc(9 * MIB, 'a'));
    expect((await buffer(large)).equals(Buffer.alloc(9 * MIB, 'A'))).toBe(true);
  });

  it('are refused by admit before they are accepted', async () => {
    const { alpha, beta } = await systems();
    alpha.server.handleDuplex('guarded', kind('guarded'), () => undefined, refuse);
    expect((await failureOf(beta.client.openDuplex('alpha', { kind: 'guarded' }))).code).toBe(
      'UMS_E_MIGRATION_UNKNOWN',
    );
  });

  it('that idle stay open, and one whose network swallows everything ends', async () => {
    const { alpha, beta, proxy } = await apart({ limits: { idle_ms: 300 } });
    alpha.server.handleDuplex('echo', kind('echo'), (_context, stream) => void stream.pipe(stream));
    const stream = await beta.client.openDuplex('alpha', { kind: 'echo' });
    stream.resume();
    await new Promise((resolve) => setTimeout(resolve, 1000));
    stream.write('x');
    expect(String((await once(stream, 'data'))[0])).toBe('x');
    proxy.faultAfter_bytes = 0;
    const [error] = await once(stream, 'error');
    expect(error).toMatchObject({ code: 'UMS_E_PEER_UNREACHABLE' });
  });

  it('that break differ from those that end', async () => {
    const { alpha, beta, proxy } = await apart();
    alpha.server.handleDuplex('tick', kind('tick'), (_context, stream) => {
      stream.on('error', () => stream.destroy());
      stream.write('x');
    });
    const stream = await beta.client.openDuplex('alpha', { kind: 'tick' });
    const reading = failureOf(buffer(stream));
    await proxy.close();
    expect((await reading).code).toBe('UMS_E_PEER_UNREACHABLE');
  });
});
