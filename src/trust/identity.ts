import { createPrivateKey, X509Certificate } from 'node:crypto';
import { UmsError } from '#src/telemetry/errors.ts';
import type { KeyStore } from './keystore.ts';
import {
  type Authority,
  createAuthorityCertificate,
  DAY_MS,
  importPrivateKey,
  isLeafFor,
  issueLeaf,
  LEAF_LIFE_MS,
  newKeyPair,
  parseCertificate,
} from './x509.ts';

const AUTHORITY_LIFE_MS = 3650 * DAY_MS;
const CERTIFICATE_MARK = '-----BEGIN CERTIFICATE-----';

export interface ServerLeaf {
  readonly key: string;
  readonly certificate: X509Certificate;
}

/** Peers know a system by name and authority together, so one state directory serves one name for good. */
export async function checkName(keys: KeyStore, name: string): Promise<void> {
  const known = await keys.read('name');
  if (known === undefined) return keys.write('name', name);
  if (known !== name) {
    throw new UmsError('UMS_E_USAGE', {
      message: `This state directory belongs to the system ${known}, not to ${name}`,
      fault: 'user',
      mend: `Start the agent with --name ${known}, or with another state directory.`,
    });
  }
}

/** Own authority: made at the first start. A key and its certificate share a file, so that both exist or neither. */
export async function openAuthority(keys: KeyStore, name: string): Promise<Authority> {
  let stored = await readPair(keys, 'authority.pem');
  if (stored === undefined) {
    const pair = await newKeyPair();
    const certificatePem = await createAuthorityCertificate(name, pair, AUTHORITY_LIFE_MS);
    await keys.write('authority.pem', `${pair.privatePem}\n${certificatePem}\n`);
    stored = { key: pair.privatePem, certificate: new X509Certificate(certificatePem) };
  }
  return {
    certificatePem: stored.certificate.toString(),
    privateKey: await importPrivateKey(stored.key),
  };
}

/** The listener's certificate, made anew when there is none that fits or less than a third of its life is left. */
export async function openServerLeaf(keys: KeyStore, authority: Authority, name: string): Promise<ServerLeaf> {
  const stored = await readPair(keys, 'server.pem');
  const issuer = new X509Certificate(authority.certificatePem);
  if (stored !== undefined && isLeafFor(stored.certificate, issuer, name) && !isDue(stored.certificate, Date.now())) {
    return stored;
  }
  const pair = await newKeyPair();
  const certificate = await issueLeaf({
    authority,
    name,
    publicKey: pair.keys.publicKey,
    use: 'server',
    life_ms: LEAF_LIFE_MS,
  });
  await keys.write('server.pem', `${pair.privatePem}\n${certificate.toString()}`);
  return { key: pair.privatePem, certificate };
}

async function readPair(keys: KeyStore, file: string): Promise<ServerLeaf | undefined> {
  const content = await keys.read(file);
  if (content === undefined) return undefined;
  const start = content.indexOf(CERTIFICATE_MARK);
  const certificate = start === -1 ? undefined : parseCertificate(content.slice(start));
  const key = content.slice(0, Math.max(start, 0));
  if (certificate === undefined || !keyFits(certificate, key)) {
    throw new UmsError('UMS_E_PREREQUISITE', {
      message: `The key file ${file} of this system is damaged`,
      fault: 'user',
      mend: 'Restore the directory `trust` of the state directory from a backup, or remove it and pair anew.',
    });
  }
  return { key, certificate };
}

export function keyFits(certificate: X509Certificate, keyPem: string): boolean {
  try {
    return certificate.checkPrivateKey(createPrivateKey(keyPem));
  } catch {
    // Not a private key at all.
    return false;
  }
}

/** Less than a third of the certificate's life is left. */
export function isDue(certificate: X509Certificate, now: number): boolean {
  const start = certificate.validFromDate.getTime();
  const end = certificate.validToDate.getTime();
  return end - now < (end - start) / 3;
}
