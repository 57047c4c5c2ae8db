import type { DatabaseSync } from 'node:sqlite';
import { z } from 'zod';

const TABLES = `
CREATE TABLE IF NOT EXISTS trust_peers (
  name TEXT PRIMARY KEY,
  address TEXT NOT NULL,
  port INTEGER NOT NULL,
  authority_pem TEXT NOT NULL,
  client_certificate_pem TEXT NOT NULL,
  client_key TEXT NOT NULL,
  certificate_expires_at INTEGER NOT NULL,
  paired_at INTEGER NOT NULL,
  confirmed_at INTEGER,
  revoked_at INTEGER
) STRICT;
CREATE TABLE IF NOT EXISTS trust_issued (
  serial TEXT PRIMARY KEY,
  peer TEXT NOT NULL,
  issued_at INTEGER NOT NULL,
  expires_at INTEGER NOT NULL,
  used_at INTEGER,
  superseded_at INTEGER,
  revoked_at INTEGER
) STRICT;
CREATE INDEX IF NOT EXISTS trust_issued_peer ON trust_issued (peer);
`;

const peerRow = z.object({
  name: z.string(),
  address: z.string(),
  port: z.int(),
  /** The peer's own authority, learnt at pairing. */
  authority_pem: z.string(),
  /** The certificate that the peer issued to this system, and the file name of its key. */
  client_certificate_pem: z.string(),
  client_key: z.string(),
  certificate_expires_at: z.number(),
  paired_at: z.number(),
  /** When the peer was first known to have its part; until then the pairing is not used from here. */
  confirmed_at: z.number().nullable(),
  revoked_at: z.number().nullable(),
});
export type PeerRecord = z.infer<typeof peerRow>;

const issuedRow = z.object({
  serial: z.string(),
  peer: z.string(),
  issued_at: z.number(),
  expires_at: z.number(),
  used_at: z.number().nullable(),
  /** When a newer certificate was first used in its place. */
  superseded_at: z.number().nullable(),
  revoked_at: z.number().nullable(),
});
export type IssuedRecord = z.infer<typeof issuedRow>;

/** Peers and the certificates issued to them, in the agent's database. */
export class TrustStore {
  readonly #db: DatabaseSync;

  constructor(db: DatabaseSync) {
    this.#db = db;
    db.exec(TABLES);
  }

  transaction(body: () => void): void {
    this.#db.exec('SAVEPOINT trust');
    try {
      body();
    } catch (error) {
      this.#db.exec('ROLLBACK TO trust; RELEASE trust');
      throw error;
    }
    this.#db.exec('RELEASE trust');
  }

  peers(): PeerRecord[] {
    return this.#db
      .prepare('SELECT * FROM trust_peers ORDER BY name')
      .all()
      .map((row) => peerRow.parse(row));
  }

  peer(name: string): PeerRecord | undefined {
    const row = this.#db.prepare('SELECT * FROM trust_peers WHERE name = ?').get(name);
    return row === undefined ? undefined : peerRow.parse(row);
  }

  putPeer(peer: PeerRecord): void {
    this.#db
      .prepare(
        `INSERT OR REPLACE INTO trust_peers (name, address, port, authority_pem, client_certificate_pem, client_key,
           certificate_expires_at, paired_at, confirmed_at, revoked_at)
         VALUES (:name, :address, :port, :authority_pem, :client_certificate_pem, :client_key,
           :certificate_expires_at, :paired_at, :confirmed_at, :revoked_at)`,
      )
      .run({ ...peer });
  }

  confirmPeer(name: string, at: number): void {
    this.#db.prepare('UPDATE trust_peers SET confirmed_at = ? WHERE name = ? AND confirmed_at IS NULL').run(at, name);
  }

  removePeer(name: string): void {
    this.#db.prepare('DELETE FROM trust_peers WHERE name = ?').run(name);
  }

  replaceClientCertificate(name: string, pem: string, key: string, expires_at: number): void {
    this.#db
      .prepare(
        `UPDATE trust_peers SET client_certificate_pem = ?, client_key = ?, certificate_expires_at = ? WHERE name = ?`,
      )
      .run(pem, key, expires_at, name);
  }

  revokePeer(name: string, at: number): void {
    this.#db.prepare('UPDATE trust_peers SET revoked_at = ? WHERE name = ?').run(at, name);
    this.revokeIssued(name, at);
  }

  revokeIssued(peer: string, at: number): void {
    this.#db.prepare('UPDATE trust_issued SET revoked_at = ? WHERE peer = ? AND revoked_at IS NULL').run(at, peer);
  }

  issued(serial: string): IssuedRecord | undefined {
    const row = this.#db.prepare('SELECT * FROM trust_issued WHERE serial = ?').get(serial);
    return row === undefined ? undefined : issuedRow.parse(row);
  }

  /** Records a new certificate for a peer; older ones stay good until its first use. */
  addIssued(issued: Pick<IssuedRecord, 'serial' | 'peer' | 'issued_at' | 'expires_at'>): void {
    this.#db
      .prepare('INSERT INTO trust_issued (serial, peer, issued_at, expires_at) VALUES (?, ?, ?, ?)')
      .run(issued.serial, issued.peer, issued.issued_at, issued.expires_at);
  }

  /** The first use of a certificate ends those that were issued to the same peer before it. */
  markUsed(issued: IssuedRecord, at: number): void {
    this.transaction(() => {
      this.#db.prepare('UPDATE trust_issued SET used_at = ? WHERE serial = ?').run(at, issued.serial);
      this.#db
        .prepare(
          `UPDATE trust_issued SET superseded_at = ? WHERE peer = ? AND superseded_at IS NULL
             AND rowid < (SELECT rowid FROM trust_issued WHERE serial = ?)`,
        )
        .run(at, issued.peer, issued.serial);
    });
  }

  /** Certificates that have run out tell nobody anything a month later. */
  forgetIssuedBefore(expired_at: number): void {
    this.#db.prepare('DELETE FROM trust_issued WHERE expires_at < ?').run(expired_at);
  }
}
