import { once } from 'node:events';
import { connect, type ConnectionOptions, type TLSSocket } from 'node:tls';
import { X509Certificate } from 'node:crypto';
import { UmsError } from '#src/telemetry/errors.ts';
import { asConnectionFailure, malformed, silent } from './failures.ts';
import { receiveMessage, sendMessage } from './messages.ts';
import { doneSchema, offerSchema } from './pairing-messages.ts';
import { ByteReader } from './reader.ts';
import { badToken, decodeToken, PAIRING_MESSAGE_LIMIT_BYTES, PAIRING_PROTOCOL, type Token } from './token.ts';
import type { PeerRecord } from './store.ts';
import type { Trust } from './trust.ts';
import { fingerprintOf, isAuthority, parseCertificate, systemUri } from './x509.ts';

const JOIN_LIMIT_MS = 20_000;
const CONNECT_LIMIT_MS = 5000;

/** The joining side of pairing: uses a token that was made on the other system. */
export async function join(trust: Trust, tokenText: string): Promise<PeerRecord> {
  const token = decodeToken(tokenText);
  if (token.name === trust.name) throw badToken('The pairing token was made by this system itself');
  try {
    const authority = await learnAuthority(token);
    trust.checkNewPeer(token.name, authority);
    return await exchange(trust, token, authority);
  } catch (error) {
    throw asConnectionFailure(token.name, error);
  }
}

/** A first connection only reads the authority that the other side shows; nothing is sent before it has been checked. */
async function learnAuthority(token: Token): Promise<X509Certificate> {
  const socket = await open(token, { rejectUnauthorized: false });
  try {
    const shown = socket.getPeerCertificate(true).issuerCertificate;
    const authority = shown?.raw === undefined ? undefined : new X509Certificate(shown.raw);
    if (authority === undefined || fingerprintOf(authority) !== token.fingerprint || !isAuthority(authority)) {
      throw badToken(`The system at ${token.address}:${token.port} is not the one that made the pairing token`);
    }
    return authority;
  } finally {
    socket.destroy();
  }
}

async function exchange(trust: Trust, token: Token, authority: X509Certificate): Promise<PeerRecord> {
  const socket = await open(token, {
    ca: authority.toString(),
    checkServerIdentity: (_host, certificate) =>
      certificate.subjectaltname === `URI:${systemUri(token.name)}`
        ? undefined
        : badToken(`The system at ${token.address}:${token.port} is not ${token.name}`),
  });
  const limit = setTimeout(() => socket.destroy(silent(token.name, JOIN_LIMIT_MS)), JOIN_LIMIT_MS);
  try {
    const reader = new ByteReader(socket, { from: token.name, highWater_bytes: PAIRING_MESSAGE_LIMIT_BYTES });
    return await converse(trust, token, socket, reader);
  } finally {
    clearTimeout(limit);
    socket.end();
  }
}

async function converse(trust: Trust, token: Token, socket: TLSSocket, reader: ByteReader): Promise<PeerRecord> {
  const { keyPem, requestPem } = await trust.newRequest();
  const hello = {
    version: 1,
    secret: token.secret,
    name: trust.name,
    address: trust.address,
    port: trust.port,
    authority_pem: trust.authorityPem,
    request_pem: requestPem,
  };
  sendMessage(socket, hello, PAIRING_MESSAGE_LIMIT_BYTES);
  const offer = await receiveMessage(reader, PAIRING_MESSAGE_LIMIT_BYTES, offerSchema);
  if ('error' in offer) throw UmsError.fromReport(offer.error);
  const offered = parseCertificate(offer.authority_pem);
  if (offered === undefined || fingerprintOf(offered) !== token.fingerprint) {
    throw malformed(token.name, 'another authority than the one it showed');
  }
  trust.checkCertificate(token.name, offer.certificate_pem, offer.authority_pem, keyPem);
  const issued = await trust.issue(token.name, offer.request_pem);
  sendMessage(socket, { certificate_pem: issued.toString() }, PAIRING_MESSAGE_LIMIT_BYTES);
  const done = await receiveMessage(reader, PAIRING_MESSAGE_LIMIT_BYTES, doneSchema);
  if ('error' in done) throw UmsError.fromReport(done.error);
  const record = await trust.addPeer({
    name: token.name,
    address: token.address,
    port: offer.port,
    authorityPem: offer.authority_pem,
    certificatePem: offer.certificate_pem,
    keyPem,
    issued,
    confirmed: true,
  });
  sendMessage(socket, { committed: true }, PAIRING_MESSAGE_LIMIT_BYTES);
  return record;
}

async function open(token: Token, options: ConnectionOptions): Promise<TLSSocket> {
  const socket = connect({
    host: token.address,
    port: token.port,
    minVersion: 'TLSv1.3',
    ALPNProtocols: [PAIRING_PROTOCOL],
    ...options,
  });
  const limit = setTimeout(() => socket.destroy(silent(token.name, CONNECT_LIMIT_MS)), CONNECT_LIMIT_MS);
  try {
    await once(socket, 'secureConnect');
  } catch (error) {
    socket.destroy();
    throw error;
  } finally {
    clearTimeout(limit);
  }
  return socket;
}
