import { connect, type ConnectionOptions, type TLSSocket } from 'node:tls';
import { buffer } from 'node:stream/consumers';
import { afterEach, describe, expect, it } from 'vitest';
import { z } from 'zod';
import { encodeLength, readMessage } from '#src/trust/messages.ts';
import { ByteReader } from '#src/trust/reader.ts';
import { failureOf, pair, until } from '#src/trust/trust.fixture.ts';
import { createRequest, issueLeaf, newKeyPair } from '#src/trust/x509.ts';
import { openSystem, type TestOptions, type TestSystem } from './channel.fixture.ts';

const opened: TestSystem[] = [];
afterEach(async () => {
  for (const one of opened.splice(0)) await one.close();
});

async function system(name: string, options: TestOptions = {}): Promise<TestSystem> {
  const made = await openSystem(name, options);
  opened.push(made);
  return made;
}

async function systems(options: TestOptions = {}): Promise<{ alpha: TestSystem; beta: TestSystem }> {
  const alpha = await system('alpha', options);
  const beta = await system('beta');
  await pair(alpha, beta);
  return { alpha, beta };
}

const anything = z.unknown();
const kind = <K extends string>(name: K) => z.object({ kind: z.literal(name) });
const ask = (from: TestSystem, to: string): Promise<unknown> =>
  from.client.request(to, { method: 'GET', path: '/', schema: anything });

/** A connection that does as it likes: any certificate, any protocol, and no check of the other side. */
async function raw(to: TestSystem, options: ConnectionOptions): Promise<TLSSocket> {
  const socket = connect({ host: '127.0.0.1', port: to.trust.port, rejectUnauthorized: false, ...options });
  socket.on('error', () => socket.destroy());
  await new Promise<void>((resolve) => {
    socket.once('secureConnect', () => resolve());
    socket.once('close', () => resolve());
  });
  return socket;
}

const REQUEST = 'POST /secret HTTP/1.1\r\nHost: alpha\r\nConnection: close\r\nContent-Length: 0\r\n\r\n';

/** What the peer endpoint says to a request over a connection made with this certificate. */
async function answerTo(to: TestSystem, options: ConnectionOptions): Promise<string> {
  const socket = await raw(to, { ALPNProtocols: ['http/1.1'], ...options });
  if (!socket.destroyed) socket.write(REQUEST);
  return (await buffer(socket)).toString();
}

/** The key and certificate with which `from` connects to `to`. */
function credentials(from: TestSystem, to: TestSystem): { key: string; cert: string } {
  const { key, cert } = from.trust.clientCredentials(from.trust.livePeer(to.trust.name));
  return { key, cert };
}

async function* endless(): AsyncGenerator<Buffer> {
  for (let count = 0; count < 1_000_000; count += 1) yield Buffer.alloc(65_536);
}

async function* nothing(): AsyncGenerator<Buffer> {
  yield* [];
}

describe('a client that is not paired', () => {
  it('is refused before the handler sees anything', async () => {
    const { alpha } = await systems();
    const gamma = await system('gamma');
    const delta = await system('delta');
    await pair(gamma, delta);
    const own = gamma.trust.serverCredentials();
    const client = delta.trust.clientCredentials(delta.trust.livePeer('gamma'));
    for (const options of [{}, { key: own.key, cert: own.cert }, { key: client.key, cert: client.cert }]) {
      expect(await answerTo(alpha, options)).toContain('UMS_E_PEER_UNPAIRED');
    }
    expect(alpha.requests).toEqual([]);
  });

  it('is refused though its authority bears the name of ours', async () => {
    const { alpha } = await systems();
    const impostor = await system('alpha');
    const pupil = await system('beta');
    await pair(impostor, pupil);
    expect(await answerTo(alpha, credentials(pupil, impostor))).toContain('UMS_E_PEER_UNPAIRED');
    expect(alpha.requests).toEqual([]);
  });

  it('is refused with a certificate of our authority that was issued to no peer', async () => {
    const { alpha } = await systems();
    // The listener's own certificate is of the same authority, but not a client's.
    const own = alpha.trust.serverCredentials();
    expect(await answerTo(alpha, { key: own.key, cert: own.cert })).toContain('UMS_E_PEER_UNPAIRED');
    const pair = await newKeyPair();
    const issued = await alpha.trust.issue('beta', await createRequest('beta', pair));
    const stray = await answerTo(alpha, { key: pair.privatePem, cert: issued.toString() });
    expect(stray).toContain('UMS_E_PEER_UNPAIRED');
    expect(alpha.requests).toEqual([]);
  });

  it('is refused on data connections, and without a known protocol', async () => {
    const { alpha } = await systems();
    const socket = await raw(alpha, { ALPNProtocols: ['ums-data/1'] });
    const answer = await readMessage(new ByteReader(socket, { from: 'alpha', idle_ms: 2000 }), 65_536);
    expect(answer).toMatchObject({ error: { code: 'UMS_E_PEER_UNPAIRED' } });
    const plain = await raw(alpha, {});
    expect((await buffer(plain)).length).toBe(0);
  });

  it('cannot use TLS 1.2', async () => {
    const { alpha, beta } = await systems();
    const socket = await raw(alpha, { ...credentials(beta, alpha), maxVersion: 'TLSv1.2' });
    expect(socket.destroyed).toBe(true);
  });

  it('is told so when the peer has forgotten it', async () => {
    const { alpha, beta } = await systems();
    alpha.db.exec('DELETE FROM trust_peers');
    expect((await failureOf(ask(beta, 'alpha'))).code).toBe('UMS_E_PEER_UNPAIRED');
    expect((await failureOf(beta.client.ping('alpha'))).code).toBe('UMS_E_PEER_UNPAIRED');
    expect((await failureOf(ask(alpha, 'beta'))).code).toBe('UMS_E_SYSTEM_UNKNOWN');
  });
});

describe('a client', () => {
  it('speaks to nobody but the system it was paired with', async () => {
    const { alpha, beta } = await systems();
    const impostor = await system('alpha');
    const gamma = await system('gamma');
    await pair(alpha, gamma);
    for (const other of [impostor, gamma]) {
      beta.db.prepare('UPDATE trust_peers SET port = ? WHERE name = ?').run(other.trust.port, 'alpha');
      expect((await failureOf(ask(beta, 'alpha'))).code).toBe('UMS_E_PEER_UNPAIRED');
      expect((await failureOf(beta.client.ping('alpha'))).code).toBe('UMS_E_PEER_UNPAIRED');
      expect(other.requests).toEqual([]);
    }
  });
});

describe('a revoked peer', () => {
  it('loses its open connections at once and gets no new ones', async () => {
    const { alpha, beta } = await systems();
    const failures: string[] = [];
    alpha.server.handleOneway('hold', kind('hold'), async ({ body }) => {
      const { code } = await failureOf(buffer(body));
      failures.push(code);
    });
    alpha.server.handleDuplex('hold-both', kind('hold-both'), (_context, stream) => {
      stream.on('error', () => failures.push('duplex'));
      stream.resume();
    });
    await ask(beta, 'alpha');
    const sending = failureOf(beta.client.send('alpha', { kind: 'hold' }, endless()));
    const stream = await beta.client.openDuplex('alpha', { kind: 'hold-both' });
    const reading = failureOf(buffer(stream));
    alpha.trust.revoke('beta');
    expect((await sending).code).not.toBe('none');
    expect((await reading).code).toBe('UMS_E_PEER_UNREACHABLE');
    await until(() => failures.length === 2, 'both handlers know');
    const before = alpha.requests.length;
    expect((await failureOf(ask(beta, 'alpha'))).code).toBe('UMS_E_PEER_REVOKED');
    expect((await failureOf(beta.client.ping('alpha'))).code).toBe('UMS_E_PEER_REVOKED');
    expect(alpha.requests.length).toBe(before);
    expect((await failureOf(ask(alpha, 'beta'))).code).toBe('UMS_E_PEER_REVOKED');
    // The certificate of the time before stays refused after the systems were paired anew.
    const old = credentials(beta, alpha);
    await pair(alpha, beta);
    expect(await answerTo(alpha, old)).toContain('UMS_E_PEER_REVOKED');
    await ask(beta, 'alpha');
  });

  it('loses the connections made to it, too', async () => {
    const { alpha, beta } = await systems();
    beta.server.handleDuplex('hold', kind('hold'), (_context, stream) => {
      stream.on('error', () => stream.destroy());
      stream.resume();
    });
    const stream = await alpha.client.openDuplex('beta', { kind: 'hold' });
    const reading = failureOf(buffer(stream));
    const waiting = failureOf(alpha.client.request('beta', { method: 'GET', path: '/never', schema: anything }));
    await until(() => beta.requests.length === 1, 'the request is there');
    alpha.trust.revoke('beta');
    expect((await reading).code).toBe('UMS_E_PEER_REVOKED');
    expect((await waiting).code).toBe('UMS_E_PEER_REVOKED');
  });
});

describe('certificates', () => {
  it('that expired are refused by the one that holds them and by the one that issued them', async () => {
    const { alpha, beta } = await systems({ leafLife_ms: 1500 });
    const held = credentials(beta, alpha);
    await ask(beta, 'alpha');
    const end = beta.trust.livePeer('alpha').certificate_expires_at;
    await until(() => Date.now() > end + 1000, 'the certificate has expired');
    const before = alpha.requests.length;
    expect((await failureOf(ask(beta, 'alpha'))).code).toBe('UMS_E_PEER_EXPIRED');
    expect((await failureOf(beta.client.ping('alpha'))).code).toBe('UMS_E_PEER_EXPIRED');
    expect(await answerTo(alpha, held)).toContain('UMS_E_PEER_EXPIRED');
    expect(alpha.requests.length).toBe(before);
  });

  it('are renewed over the channel; the old one ends with the first use of the new', async () => {
    const { alpha, beta } = await systems();
    const old = credentials(beta, alpha);
    const record = await beta.client.rotate('alpha');
    expect(record.client_certificate_pem).not.toBe(old.cert);
    expect(credentials(beta, alpha).key).not.toBe(old.key);
    expect(await answerTo(alpha, old)).toContain('200 OK');
    await beta.client.ping('alpha');
    expect(await answerTo(alpha, old)).toContain('UMS_E_PEER_EXPIRED');
    await ask(beta, 'alpha');
  });

  it('stay good when the answer to a renewal is lost', async () => {
    const { alpha, beta } = await systems();
    await alpha.trust.issueRotation('beta', (await beta.trust.newRequest()).requestPem);
    await ask(beta, 'alpha');
    await beta.client.ping('alpha');
    // Several renewals at once come out as one.
    const records = await Promise.all([1, 2, 3].map(() => beta.client.rotate('alpha')));
    expect(new Set(records.map((record) => record.client_certificate_pem)).size).toBe(1);
    await beta.client.ping('alpha');
  });

  it('are renewed on their own in the last third of their life', async () => {
    const { alpha, beta } = await systems({ leafLife_ms: 600_000 });
    expect(beta.trust.dueForRotation()).toEqual(['alpha']);
    expect(alpha.trust.dueForRotation()).toEqual([]);
    expect(await beta.client.rotateDue()).toEqual({ rotated: ['alpha'], failed: [] });
    await alpha.server.close();
    expect(await beta.client.rotateDue()).toEqual({ rotated: [], failed: ['alpha'] });
  });

  it('are not renewed for a request that is not valid, and the old one stays', async () => {
    const { alpha, beta } = await systems();
    const header = { kind: 'ums.rotate', request_pem: 'x' };
    expect((await failureOf(beta.client.send('alpha', header, nothing()))).code).toBe('UMS_E_PEER_MESSAGE');
    await ask(beta, 'alpha');
    expect(await alpha.trust.renewServerLeaf()).toBe(false);
    alpha.server.renewCertificate();
    await beta.client.ping('alpha');
  });

  it('of a leaf do not sign others', async () => {
    const { alpha, beta } = await systems();
    const { key, cert } = credentials(beta, alpha);
    const pupil = await newKeyPair();
    const signing = await crypto.subtle.importKey(
      'pkcs8',
      Buffer.from(key.replaceAll(/-----[^-]+-----|\s/g, ''), 'base64'),
      { name: 'ECDSA', namedCurve: 'P-256' },
      false,
      ['sign'],
    );
    const forged = await issueLeaf({
      authority: { certificatePem: cert, privateKey: signing },
      name: 'beta',
      publicKey: pupil.keys.publicKey,
      use: 'client',
      life_ms: 60_000,
    });
    const chain = { key: pupil.privatePem, cert: `${forged.toString()}${cert}` };
    expect(await answerTo(alpha, chain)).toContain('UMS_E_PEER_UNPAIRED');
    expect(alpha.requests).toEqual([]);
  });
});

describe('limits', () => {
  it('on connections per peer hold, and closing one makes room', async () => {
    const { alpha, beta } = await systems({ limits: { connectionsPerPeer: 2 } });
    alpha.server.handleDuplex(
      'hold',
      kind('hold'),
      (_context, stream) => void stream.resume().on('end', () => stream.end()),
    );
    const streams = [
      await beta.client.openDuplex('alpha', { kind: 'hold' }),
      await beta.client.openDuplex('alpha', { kind: 'hold' }),
    ];
    expect((await failureOf(beta.client.ping('alpha'))).code).toBe('UMS_E_PEER_MESSAGE');
    for (const stream of streams) {
      stream.end();
      await buffer(stream);
    }
    await until(() => streams.every((stream) => stream.destroyed), 'the streams are closed');
    let code = '';
    for (let attempt = 0; attempt < 100 && code !== 'none'; attempt += 1) {
      ({ code } = await failureOf(beta.client.ping('alpha')));
    }
    expect(code).toBe('none');
  });

  it('on the handshake and on the header hold for a peer that says nothing', async () => {
    const { alpha, beta } = await systems({ limits: { handshake_ms: 100, idle_ms: 100 } });
    const socket = await raw(alpha, { ...credentials(beta, alpha), ALPNProtocols: ['ums-data/1'] });
    const answer = await readMessage(new ByteReader(socket, { from: 'alpha', idle_ms: 2000 }), 65_536);
    expect(answer).toMatchObject({ error: { code: 'UMS_E_PEER_UNREACHABLE' } });
    socket.destroy();
    const slow = await raw(alpha, { ...credentials(beta, alpha), ALPNProtocols: ['http/1.1'] });
    slow.write('POST / HTTP/1.1\r\n');
    expect((await buffer(slow)).toString()).toContain('408');
  });

  it('on a header hold before it is read', async () => {
    const { alpha, beta } = await systems();
    const socket = await raw(alpha, { ...credentials(beta, alpha), ALPNProtocols: ['ums-data/1'] });
    socket.write(encodeLength(64 * 1024 + 1));
    const answer = await readMessage(new ByteReader(socket, { from: 'alpha', idle_ms: 2000 }), 65_536);
    expect(answer).toMatchObject({ error: { code: 'UMS_E_PEER_MESSAGE' } });
  });
});
