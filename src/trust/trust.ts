import { randomUUID, X509Certificate } from 'node:crypto';
import type { DatabaseSync } from 'node:sqlite';
import { z } from 'zod';
import { UmsError } from '#src/telemetry/errors.ts';
import type { Logger } from '#src/telemetry/log.ts';
import { expired, malformed, revoked, unpaired } from './failures.ts';
import { checkName, isDue, keyFits, openAuthority, openServerLeaf, type ServerLeaf } from './identity.ts';
import { KeyStore } from './keystore.ts';
import { type PeerRecord, TrustStore } from './store.ts';
import {
  type Authority,
  createRequest,
  DAY_MS,
  fingerprintOf,
  isAuthority,
  isLeafFor,
  issueLeaf,
  LEAF_LIFE_MS,
  newKeyPair,
  parseCertificate,
  systemUri,
  verifiedRequestKey,
} from './x509.ts';

export const peerNameSchema = z.string().regex(/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/);
export const pemSchema = z.string().max(16_384);

/** A pairing that the other side never confirmed is forgotten after this long. */
const UNCONFIRMED_LIFE_MS = 3_600_000;
const PEER_LIMIT = 1024;

export interface TrustOptions {
  /** Directory for keys, made with mode 0700. */
  readonly directory: string;
  readonly db: DatabaseSync;
  readonly name: string;
  /** Where peers reach this system. */
  readonly address: string;
  readonly port: number;
  readonly log: Logger;
  /** Life of a certificate issued to a peer; 90 days unless a test needs less. */
  readonly leafLife_ms?: number;
}

export interface Credentials {
  readonly key: string;
  readonly cert: string;
  readonly ca: string;
}

export interface NewPeer {
  readonly name: string;
  readonly address: string;
  readonly port: number;
  readonly authorityPem: string;
  readonly certificatePem: string;
  /** The key of that certificate, PKCS #8 PEM. */
  readonly keyPem: string;
  /** What this system issued to the peer. */
  readonly issued: X509Certificate;
  readonly confirmed: boolean;
}

/** The identity of this system and the systems it is paired with. */
export class Trust {
  readonly name: string;
  readonly address: string;
  readonly port: number;
  readonly #store: TrustStore;
  readonly #keys: KeyStore;
  readonly #audit: Logger;
  readonly #leafLife_ms: number;
  readonly #revocation = new Set<(peer: string) => void>();
  readonly #clientKeys = new Map<string, string>();
  readonly #authority: Authority;
  #server: ServerLeaf;

  private constructor(options: TrustOptions, keys: KeyStore, authority: Authority, server: ServerLeaf) {
    this.name = options.name;
    this.address = options.address;
    this.port = options.port;
    this.#store = new TrustStore(options.db);
    this.#keys = keys;
    this.#audit = options.log.child({ audit: true });
    this.#leafLife_ms = options.leafLife_ms ?? LEAF_LIFE_MS;
    this.#authority = authority;
    this.#server = server;
  }

  static async open(options: TrustOptions): Promise<Trust> {
    peerNameSchema.parse(options.name);
    const keys = await KeyStore.open(options.directory);
    await checkName(keys, options.name);
    const authority = await openAuthority(keys, options.name);
    const trust = new Trust(options, keys, authority, await openServerLeaf(keys, authority, options.name));
    trust.#forgetUnconfirmed();
    await trust.#loadClientKeys();
    return trust;
  }

  get authorityPem(): string {
    return this.#authority.certificatePem;
  }

  /** What a person compares, and what an invitation carries. */
  get fingerprint(): string {
    return fingerprintOf(new X509Certificate(this.#authority.certificatePem));
  }

  /** For a listener: own leaf with its authority behind it, and that authority alone as the issuer of clients. */
  serverCredentials(): Credentials {
    const cert = `${this.#server.certificate.toString()}${this.#authority.certificatePem}`;
    return { key: this.#server.key, cert, ca: this.#authority.certificatePem };
  }

  peers(): PeerRecord[] {
    return this.#store.peers();
  }

  peer(name: string): PeerRecord | undefined {
    return this.#store.peer(name);
  }

  /** The peer's record, or the reason why it cannot be spoken to. */
  livePeer(name: string): PeerRecord {
    const peer = this.#store.peer(name);
    if (peer === undefined || (peer.confirmed_at === null && peer.revoked_at === null)) {
      throw new UmsError('UMS_E_SYSTEM_UNKNOWN', {
        message: `No system named ${name} is paired with ${this.name}`,
        fault: 'user',
        mend: 'See the paired systems with `ums systems`; pair another one with `ums pair invite`.',
      });
    }
    if (peer.revoked_at !== null) throw revoked(`The pairing with ${name} was revoked on ${this.name}`);
    if (peer.certificate_expires_at <= Date.now()) {
      throw expired(`The certificate that ${name} issued to ${this.name} expired`);
    }
    return peer;
  }

  /** For a connection to a peer: the certificate that it issued to us, and its authority alone as the issuer of its own. */
  clientCredentials(peer: PeerRecord): Credentials {
    const key = this.#clientKeys.get(peer.client_key);
    if (key === undefined) throw unpaired(`The key for the connection to ${peer.name} is missing on ${this.name}`);
    return { key, cert: peer.client_certificate_pem, ca: peer.authority_pem };
  }

  /** Which peer a verified client certificate speaks for; throws the reason for a refusal. */
  identify(certificate: X509Certificate): string {
    const now = Date.now();
    const issued = this.#store.issued(certificate.serialNumber.toLowerCase());
    const peer = issued === undefined ? undefined : this.#store.peer(issued.peer);
    if (issued === undefined || peer === undefined || certificate.subjectAltName !== `URI:${systemUri(peer.name)}`) {
      throw unpaired(`${this.name} does not know that certificate`);
    }
    if (issued.revoked_at !== null || peer.revoked_at !== null) {
      throw revoked(`${this.name} has revoked the pairing with ${peer.name}`);
    }
    if (issued.expires_at <= now) throw expired(`The certificate of ${peer.name} expired`);
    if (issued.superseded_at !== null) {
      throw expired(`The certificate of ${peer.name} was replaced by a newer one`);
    }
    if (issued.used_at === null) this.#store.markUsed(issued, now);
    if (peer.confirmed_at === null) this.confirm(peer.name);
    return peer.name;
  }

  /** Throws unless a system of this name and authority may be paired. */
  checkNewPeer(name: string, authority: X509Certificate): void {
    const known = this.#store.peer(name);
    const other = known === undefined ? undefined : parseCertificate(known.authority_pem);
    const live = known !== undefined && known.revoked_at === null && known.confirmed_at !== null;
    if (name === this.name || (live && (other === undefined || fingerprintOf(other) !== fingerprintOf(authority)))) {
      throw new UmsError('UMS_E_USAGE', {
        message: `${this.name} already knows a system named ${name}`,
        fault: 'user',
        mend: 'Give the new system another name, or revoke the pairing with the old one first.',
      });
    }
    if (known === undefined && this.#store.peers().length >= PEER_LIMIT) {
      throw new UmsError('UMS_E_USAGE', { message: `${this.name} has ${PEER_LIMIT} peers already`, fault: 'user' });
    }
  }

  /** A fresh key and a request for a certificate of this system's name. */
  async newRequest(): Promise<{ keyPem: string; requestPem: string }> {
    const pair = await newKeyPair();
    return { keyPem: pair.privatePem, requestPem: await createRequest(this.name, pair) };
  }

  /** Signs a peer's request with this system's authority. The caller has authenticated the peer. */
  async issue(peer: string, requestPem: string): Promise<X509Certificate> {
    const publicKey = await verifiedRequestKey(requestPem);
    if (publicKey === undefined) throw malformed(peer, 'a signing request that is not valid');
    return issueLeaf({
      authority: this.#authority,
      name: peer,
      publicKey,
      use: 'client',
      life_ms: this.#leafLife_ms,
    });
  }

  /** Throws unless `certificatePem` is what that authority should have issued to us for this key. */
  checkCertificate(peer: string, certificatePem: string, authorityPem: string, keyPem: string): X509Certificate {
    const certificate = parseCertificate(certificatePem);
    const authority = parseCertificate(authorityPem);
    const good =
      certificate !== undefined &&
      authority !== undefined &&
      isAuthority(authority) &&
      isLeafFor(certificate, authority, this.name) &&
      keyFits(certificate, keyPem);
    if (!good) throw malformed(peer, 'a certificate that is not the one asked for');
    return certificate;
  }

  async addPeer(peer: NewPeer): Promise<PeerRecord> {
    const certificate = this.checkCertificate(peer.name, peer.certificatePem, peer.authorityPem, peer.keyPem);
    const client_key = await this.#saveClientKey(peer.keyPem);
    const before = this.#store.peer(peer.name);
    const now = Date.now();
    const record: PeerRecord = {
      name: peer.name,
      address: peer.address,
      port: peer.port,
      authority_pem: peer.authorityPem,
      client_certificate_pem: peer.certificatePem,
      client_key,
      certificate_expires_at: certificate.validToDate.getTime(),
      paired_at: now,
      confirmed_at: peer.confirmed ? now : null,
      revoked_at: null,
    };
    this.#store.transaction(() => {
      // Another exchange may have come first since the caller looked.
      this.checkNewPeer(peer.name, new X509Certificate(peer.authorityPem));
      // Whoever had this name before is another system, whose certificates must not speak for the new one.
      if (before !== undefined && before.authority_pem !== peer.authorityPem) {
        this.#store.revokeIssued(peer.name, now);
      }
      this.#store.putPeer(record);
      this.#recordIssued(peer.name, peer.issued);
    });
    if (before !== undefined) await this.#dropClientKey(before.client_key);
    this.#audit.info({ event: 'peer.added', peer: peer.name, confirmed: peer.confirmed }, 'pairing recorded');
    return record;
  }

  confirm(name: string): void {
    this.#store.confirmPeer(name, Date.now());
    this.#audit.info({ event: 'peer.confirmed', peer: name }, 'pairing confirmed');
  }

  /** Ends the pairing from this side: nothing of that peer is accepted from now on, and open connections end. */
  revoke(name: string): void {
    const peer = this.#store.peer(name);
    if (peer === undefined) {
      throw new UmsError('UMS_E_SYSTEM_UNKNOWN', {
        message: `No system named ${name} is paired with ${this.name}`,
        fault: 'user',
        mend: 'See the paired systems with `ums systems`.',
      });
    }
    if (peer.revoked_at === null) this.#store.transaction(() => this.#store.revokePeer(name, Date.now()));
    this.#audit.warn({ event: 'peer.revoked', peer: name }, 'pairing revoked');
    for (const listener of this.#revocation) listener(name);
  }

  /** Calls back with the name of each peer that is revoked; returns the function that ends it. */
  onRevoked(listener: (peer: string) => void): () => void {
    this.#revocation.add(listener);
    return () => this.#revocation.delete(listener);
  }

  /** Answers a live peer that asks for a new certificate. The old one ends with the first use of the new. */
  async issueRotation(peer: string, requestPem: string): Promise<string> {
    const issued = await this.issue(peer, requestPem);
    this.livePeer(peer);
    this.#store.transaction(() => this.#recordIssued(peer, issued));
    this.#audit.info({ event: 'certificate.issued', peer, serial: issued.serialNumber }, 'certificate rotated');
    return issued.toString();
  }

  /** Gets a new certificate from a peer through `exchange`, which carries our request there and its answer back. */
  async rotate(name: string, exchange: (requestPem: string) => Promise<string>): Promise<PeerRecord> {
    const { keyPem, requestPem } = await this.newRequest();
    const certificatePem = await exchange(requestPem);
    const peer = this.livePeer(name);
    const certificate = this.checkCertificate(name, certificatePem, peer.authority_pem, keyPem);
    const key = await this.#saveClientKey(keyPem);
    this.#store.replaceClientCertificate(name, certificatePem, key, certificate.validToDate.getTime());
    await this.#dropClientKey(peer.client_key);
    this.#audit.info({ event: 'certificate.renewed', peer: name }, 'certificate renewed');
    return this.livePeer(name);
  }

  /** Peers whose certificate for us has less than a third of its life left. */
  dueForRotation(): string[] {
    const now = Date.now();
    return this.peers()
      .filter((peer) => peer.revoked_at === null && peer.confirmed_at !== null && peer.certificate_expires_at > now)
      .filter((peer) => isDue(new X509Certificate(peer.client_certificate_pem), now))
      .map((peer) => peer.name);
  }

  /** Renews the listener's own certificate when it is due; true when it changed. */
  async renewServerLeaf(): Promise<boolean> {
    const before = this.#server.certificate.serialNumber;
    this.#server = await openServerLeaf(this.#keys, this.#authority, this.name);
    this.#store.forgetIssuedBefore(Date.now() - 30 * DAY_MS);
    this.#forgetUnconfirmed();
    return this.#server.certificate.serialNumber !== before;
  }

  #recordIssued(peer: string, issued: X509Certificate): void {
    const serial = issued.serialNumber.toLowerCase();
    const expires_at = issued.validToDate.getTime();
    this.#store.addIssued({ serial, peer, issued_at: Date.now(), expires_at });
  }

  #forgetUnconfirmed(): void {
    const limit = Date.now() - UNCONFIRMED_LIFE_MS;
    for (const peer of this.#store.peers()) {
      if (peer.confirmed_at !== null || peer.revoked_at !== null || peer.paired_at > limit) continue;
      this.#store.transaction(() => {
        this.#store.removePeer(peer.name);
        this.#store.revokeIssued(peer.name, Date.now());
      });
      this.#audit.info({ event: 'peer.forgotten', peer: peer.name }, 'pairing was never confirmed');
    }
  }

  async #saveClientKey(pem: string): Promise<string> {
    const name = `client-${randomUUID()}.key`;
    await this.#keys.write(name, pem);
    this.#clientKeys.set(name, pem);
    return name;
  }

  async #dropClientKey(name: string): Promise<void> {
    this.#clientKeys.delete(name);
    await this.#keys.remove(name);
  }

  async #loadClientKeys(): Promise<void> {
    const wanted = new Set(this.#store.peers().map((peer) => peer.client_key));
    for (const name of wanted) {
      const pem = await this.#keys.read(name);
      if (pem !== undefined) this.#clientKeys.set(name, pem);
    }
    // A crash between writing a key and recording it leaves a file that nothing refers to.
    for (const name of await this.#keys.names()) {
      if (name.startsWith('client-') && !wanted.has(name)) await this.#keys.remove(name);
    }
  }
}
