import { readdirSync, statSync } from 'node:fs';
import { join as joinPath } from 'node:path';
import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { connect, type TLSSocket } from 'node:tls';
import { afterEach, describe, expect, it } from 'vitest';
import { createLogger } from '#src/telemetry/log.ts';
import { join } from './join.ts';
import { encodeLength, readMessage } from './messages.ts';
import { ByteReader } from './reader.ts';
import { failureOf, openTrust, pair, type TestTrust, type TestTrustOptions, until } from './trust.fixture.ts';
import { decodeToken, encodeToken, PAIRING_PROTOCOL } from './token.ts';
import { Trust } from './trust.ts';

const opened: TestTrust[] = [];

async function system(name: string, options: TestTrustOptions = {}): Promise<TestTrust> {
  const made = await openTrust(name, options);
  opened.push(made);
  return made;
}

afterEach(async () => {
  for (const one of opened.splice(0)) await one.close();
});

/** A raw connection to the pairing port, for a peer that does not keep to the protocol. */
async function rawConnection(port: number): Promise<TLSSocket> {
  const socket = connect({ port, host: '127.0.0.1', rejectUnauthorized: false, ALPNProtocols: [PAIRING_PROTOCOL] });
  await once(socket, 'secureConnect');
  socket.on('error', () => socket.destroy());
  return socket;
}

async function answerTo(port: number, ...bytes: Buffer[]): Promise<string> {
  const socket = await rawConnection(port);
  for (const part of bytes) socket.write(part);
  const answer = await readMessage(new ByteReader(socket, { from: 'alpha', idle_ms: 2000 }), 65_536);
  socket.destroy();
  return JSON.stringify(answer);
}

describe('pairing', () => {
  it('gives each side a certificate of the other and closes its port', async () => {
    const alpha = await system('alpha');
    const beta = await system('beta');
    await pair(alpha, beta);
    const there = alpha.trust.livePeer('beta');
    const here = beta.trust.livePeer('alpha');
    expect(there.authority_pem).toBe(beta.trust.authorityPem);
    expect(here.authority_pem).toBe(alpha.trust.authorityPem);
    expect([here.address, here.port]).toEqual(['127.0.0.1', alpha.trust.port]);
    expect([there.address, there.port]).toEqual(['127.0.0.1', beta.trust.port]);
    await until(() => !alpha.invitations.listening, 'the pairing port is closed');
  });

  it('keeps keys and identity to their owner, and across a restart', async () => {
    const alpha = await system('alpha');
    const beta = await system('beta');
    await pair(alpha, beta);
    const directory = joinPath(alpha.directory, 'trust');
    expect(statSync(directory).mode & 0o777).toBe(0o700);
    for (const file of readdirSync(directory)) expect(statSync(joinPath(directory, file)).mode & 0o777).toBe(0o600);
    const log = createLogger('silent');
    const again = { directory, db: alpha.db, address: '127.0.0.1', port: alpha.trust.port, log };
    const reopened = await Trust.open({ ...again, name: 'alpha' });
    expect(reopened.fingerprint).toBe(alpha.trust.fingerprint);
    expect(reopened.clientCredentials(reopened.livePeer('beta'))).toEqual(
      alpha.trust.clientCredentials(alpha.trust.livePeer('beta')),
    );
    expect((await failureOf(Trust.open({ ...again, name: 'gamma' }))).code).toBe('UMS_E_USAGE');
  });

  it('takes a token once', async () => {
    const alpha = await system('alpha');
    const { token } = await alpha.invitations.invite({ ttl_s: 60 });
    // Another invitation keeps the port open, so that it is the token that is refused.
    await alpha.invitations.invite({ ttl_s: 60 });
    await join((await system('beta')).trust, token);
    const gamma = await system('gamma');
    expect((await failureOf(join(gamma.trust, token))).code).toBe('UMS_E_PAIRING_TOKEN');
    expect(gamma.trust.peers()).toEqual([]);
    expect(alpha.trust.peer('gamma')).toBeUndefined();
  });

  it('gives one token to only one of two that use it at once', async () => {
    const alpha = await system('alpha');
    const { token } = await alpha.invitations.invite({ ttl_s: 60 });
    const joining = [await system('beta'), await system('gamma')];
    const results = await Promise.all(joining.map(async (one) => (await failureOf(join(one.trust, token))).code));
    expect(results.filter((code) => code === 'none')).toHaveLength(1);
    expect(alpha.trust.peers()).toHaveLength(1);
  });

  it('refuses a token that has expired, on both sides', async () => {
    const alpha = await system('alpha');
    const beta = await system('beta');
    await alpha.invitations.invite({ ttl_s: 60 });
    const { token, expires_at } = await alpha.invitations.invite({ ttl_s: 1 });
    const extended = encodeToken({ ...decodeToken(token), expires_at: expires_at + 60_000 });
    await until(() => Date.now() > expires_at, 'the token has expired');
    expect((await failureOf(join(beta.trust, token))).code).toBe('UMS_E_PAIRING_TOKEN');
    expect((await failureOf(join(beta.trust, extended))).code).toBe('UMS_E_PAIRING_TOKEN');
    expect(beta.trust.peers()).toEqual([]);
  });

  it('refuses a wrong secret, and withdraws the invitations after too many', async () => {
    const alpha = await system('alpha');
    const beta = await system('beta');
    const { token } = await alpha.invitations.invite({ ttl_s: 60 });
    const wrong = encodeToken({ ...decodeToken(token), secret: 'A'.repeat(43) });
    for (let attempt = 0; attempt < 16; attempt += 1) {
      expect((await failureOf(join(beta.trust, wrong))).code).toBe('UMS_E_PAIRING_TOKEN');
    }
    expect((await failureOf(join(beta.trust, token))).code).not.toBe('none');
    await until(() => !alpha.invitations.listening, 'the pairing port is closed');
    expect(alpha.trust.peers()).toEqual([]);
  });

  it('tells another system at the address from the one that invited, before it says a word', async () => {
    const alpha = await system('alpha');
    const beta = await system('beta');
    const { token } = await alpha.invitations.invite({ ttl_s: 60 });
    const tampered = encodeToken({ ...decodeToken(token), fingerprint: '0'.repeat(64) });
    expect((await failureOf(join(beta.trust, tampered))).code).toBe('UMS_E_PAIRING_TOKEN');
    const renamed = encodeToken({ ...decodeToken(token), name: 'omega' });
    expect((await failureOf(join(beta.trust, renamed))).code).toBe('UMS_E_PAIRING_TOKEN');
    await join(beta.trust, token);
  });

  it('refuses what is not a token at all', async () => {
    const { trust } = await system('beta');
    for (const text of ['', 'x', 'e30', 'A'.repeat(9000), Buffer.from('[1]').toString('base64url')]) {
      expect((await failureOf(join(trust, text))).code).toBe('UMS_E_PAIRING_TOKEN');
    }
  });

  it('refuses a name that another live peer has, and its own', async () => {
    const alpha = await system('alpha');
    const beta = await system('beta');
    await pair(alpha, beta);
    const impostor = await system('beta');
    const { token } = await alpha.invitations.invite({ ttl_s: 60 });
    expect((await failureOf(join(impostor.trust, token))).code).toBe('UMS_E_USAGE');
    expect(alpha.trust.livePeer('beta').authority_pem).toBe(beta.trust.authorityPem);
    expect(impostor.trust.peers()).toEqual([]);
    const namesake = await system('alpha');
    expect((await failureOf(join(namesake.trust, token))).code).toBe('UMS_E_PAIRING_TOKEN');
    // The failed exchange gave the invitation back.
    await join((await system('gamma')).trust, token);
  });

  it('gives a name to only one of two systems that ask for it at once', async () => {
    const alpha = await system('alpha');
    const tokens = [await alpha.invitations.invite({ ttl_s: 60 }), await alpha.invitations.invite({ ttl_s: 60 })];
    const rivals = [await system('beta'), await system('beta')];
    const codes = await Promise.all(
      rivals.map(async (rival, index) => (await failureOf(join(rival.trust, tokens[index]?.token ?? ''))).code),
    );
    await until(() => alpha.trust.peer('beta')?.confirmed_at !== null, 'the pairing is confirmed');
    const winner = rivals.find((rival) => rival.trust.authorityPem === alpha.trust.livePeer('beta').authority_pem);
    expect(winner).toBeDefined();
    // A rival that believes to be paired, because it came in between, has a certificate that is worth nothing.
    for (const rival of rivals.filter((one) => one !== winner)) {
      const held = rival.trust.peer('alpha')?.client_certificate_pem;
      if (held === undefined) continue;
      expect(() => alpha.trust.identify(new X509Certificate(held))).toThrow(/revoked/);
    }
    expect(codes).toContain('none');
  });

  it('pairs anew after a revocation', async () => {
    const alpha = await system('alpha');
    const beta = await system('beta');
    await pair(alpha, beta);
    alpha.trust.revoke('beta');
    expect((await failureOf((async () => alpha.trust.livePeer('beta'))())).code).toBe('UMS_E_PEER_REVOKED');
    await pair(alpha, beta);
    expect(alpha.trust.livePeer('beta').revoked_at).toBeNull();
  });

  it('refuses messages that are malformed or over the limit', async () => {
    const alpha = await system('alpha');
    const { port } = decodeToken((await alpha.invitations.invite({ ttl_s: 60 })).token);
    expect(await answerTo(port, encodeLength(64 * 1024 + 1))).toContain('UMS_E_PEER_MESSAGE');
    expect(await answerTo(port, encodeLength(2), Buffer.from('{}'))).toContain('UMS_E_PEER_MESSAGE');
    expect(await answerTo(port, encodeLength(3), Buffer.from('{{{'))).toContain('UMS_E_PEER_MESSAGE');
    expect(alpha.trust.peers()).toEqual([]);
  });

  it('leaves nothing active when the joining side goes away in between', async () => {
    const lines: string[] = [];
    const log = createLogger('info', { write: (line: string) => void lines.push(line) });
    const alpha = await system('alpha', { log });
    const beta = await system('beta');
    const { token } = await alpha.invitations.invite({ ttl_s: 60 });
    const { port, secret } = decodeToken(token);
    const socket = await rawConnection(port);
    const { requestPem } = await beta.trust.newRequest();
    const hello = Buffer.from(
      JSON.stringify({
        version: 1,
        secret,
        name: 'beta',
        address: '127.0.0.1',
        port: 1,
        authority_pem: beta.trust.authorityPem,
        request_pem: requestPem,
      }),
    );
    socket.write(Buffer.concat([encodeLength(hello.length), hello]));
    await readMessage(new ByteReader(socket, { from: 'alpha', idle_ms: 2000 }), 65_536);
    socket.destroy();
    await until(() => lines.some((line) => line.includes('pairing.refused')), 'the exchange has ended');
    expect(alpha.trust.peers()).toEqual([]);
    // The invitation was not used up.
    await join(beta.trust, token);
  });

  it('never logs the secret', async () => {
    const lines: string[] = [];
    const log = createLogger('trace', { write: (line: string) => void lines.push(line) });
    const alpha = await system('alpha', { log });
    const beta = await system('beta', { log });
    const { token } = await alpha.invitations.invite({ ttl_s: 60 });
    await join(beta.trust, token);
    await until(() => lines.some((line) => line.includes('invitation.used')), 'the use is in the audit log');
    expect(lines.join('')).not.toContain(decodeToken(token).secret);
    expect(lines.join('')).not.toContain('PRIVATE KEY');
  });
});
