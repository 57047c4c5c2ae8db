// The certificate library resolves its parts through decorators, so the metadata shim has to be there first.
import 'reflect-metadata';
import { randomBytes, webcrypto, X509Certificate } from 'node:crypto';
import * as x509 from '@peculiar/x509';

x509.cryptoProvider.set(webcrypto);

const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };
export const DAY_MS = 86_400_000;
export const LEAF_LIFE_MS = 90 * DAY_MS;
/** Clocks of two systems may differ; a certificate is valid from this much before its issue. */
const BACKDATE_MS = 3_600_000;

export interface KeyPair {
  readonly keys: webcrypto.CryptoKeyPair;
  /** PKCS #8, PEM. */
  readonly privatePem: string;
}

export interface Authority {
  readonly certificatePem: string;
  readonly privateKey: webcrypto.CryptoKey;
}

export function systemUri(name: string): string {
  return `ums://system/${name}`;
}

/** SHA-256 over the DER form, lower-case hexadecimal. */
export function fingerprintOf(certificate: X509Certificate): string {
  return certificate.fingerprint256.replaceAll(':', '').toLowerCase();
}

export async function newKeyPair(): Promise<KeyPair> {
  const keys = await webcrypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify']);
  const pkcs8 = await webcrypto.subtle.exportKey('pkcs8', keys.privateKey);
  return { keys, privatePem: x509.PemConverter.encode(pkcs8, 'PRIVATE KEY') };
}

export async function importPrivateKey(pem: string): Promise<webcrypto.CryptoKey> {
  const der = x509.PemConverter.decodeFirst(pem);
  return webcrypto.subtle.importKey('pkcs8', der, ALGORITHM, false, ['sign']);
}

/** 128 bits, the first byte neither zero nor negative, so that every library prints the same hexadecimal. */
function newSerial(): string {
  const bytes = randomBytes(16);
  bytes[0] = ((bytes[0] ?? 0) & 0x3f) | 0x40;
  return bytes.toString('hex');
}

export async function createAuthorityCertificate(name: string, pair: KeyPair, life_ms: number): Promise<string> {
  const now = Date.now();
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: newSerial(),
    name: `CN=ums authority of ${name}`,
    notBefore: new Date(now - BACKDATE_MS),
    notAfter: new Date(now + life_ms),
    signingAlgorithm: ALGORITHM,
    keys: pair.keys,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(pair.keys.publicKey),
    ],
  });
  return certificate.toString('pem');
}

export interface LeafRequest {
  readonly authority: Authority;
  /** Name of the system that the certificate speaks for. */
  readonly name: string;
  readonly publicKey: x509.PublicKeyType;
  readonly use: 'client' | 'server';
  readonly life_ms: number;
}

/** Everything but the public key is the issuer's choice: what a request asks for in names or extensions is ignored. */
export async function issueLeaf(request: LeafRequest): Promise<X509Certificate> {
  const now = Date.now();
  const issuer = new x509.X509Certificate(request.authority.certificatePem);
  const usage = request.use === 'client' ? x509.ExtendedKeyUsage.clientAuth : x509.ExtendedKeyUsage.serverAuth;
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: newSerial(),
    subject: `CN=${request.name}`,
    issuer: issuer.subject,
    notBefore: new Date(now - BACKDATE_MS),
    notAfter: new Date(now + request.life_ms),
    signingAlgorithm: ALGORITHM,
    signingKey: request.authority.privateKey,
    publicKey: request.publicKey,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([usage], true),
      new x509.SubjectAlternativeNameExtension([{ type: 'url', value: systemUri(request.name) }], true),
      await x509.AuthorityKeyIdentifierExtension.create(await issuer.publicKey.export()),
    ],
  });
  return new X509Certificate(certificate.toString('pem'));
}

export async function createRequest(name: string, pair: KeyPair): Promise<string> {
  const request = await x509.Pkcs10CertificateRequestGenerator.create({
    name: `CN=${name}`,
    keys: pair.keys,
    signingAlgorithm: ALGORITHM,
  });
  return request.toString('pem');
}

/** The public key of a signing request whose sender proved to hold the private one; undefined for anything else. */
export async function verifiedRequestKey(pem: string): Promise<x509.PublicKey | undefined> {
  try {
    const request = new x509.Pkcs10CertificateRequest(pem);
    const algorithm: { name: string; namedCurve?: string } = request.publicKey.algorithm;
    if (algorithm.name !== 'ECDSA' || algorithm.namedCurve !== 'P-256') return undefined;
    return (await request.verify()) ? request.publicKey : undefined;
  } catch {
    // What a peer sends may break the parser in any way; all of them mean that there is no usable request.
    return undefined;
  }
}

export function parseCertificate(pem: string): X509Certificate | undefined {
  try {
    return new X509Certificate(pem);
  } catch {
    // As above: not a certificate.
    return undefined;
  }
}

export function isAuthority(certificate: X509Certificate): boolean {
  return certificate.ca && certificate.checkIssued(certificate) && certificate.verify(certificate.publicKey);
}

/** True when `leaf` was signed by `authority`, speaks for `name` and is valid now. */
export function isLeafFor(leaf: X509Certificate, authority: X509Certificate, name: string): boolean {
  const now = Date.now();
  return (
    !leaf.ca &&
    leaf.checkIssued(authority) &&
    leaf.verify(authority.publicKey) &&
    leaf.subjectAltName === `URI:${systemUri(name)}` &&
    leaf.validFromDate.getTime() <= now &&
    leaf.validToDate.getTime() > now
  );
}
