import { randomBytes, randomUUID } from 'node:crypto';
import { EventEmitter } from 'node:events';
import type { DatabaseSync, SQLOutputValue } from 'node:sqlite';
import { z } from 'zod';
import { engineSchema } from '#src/drivers/specification.ts';
import { type ErrorReport, errorReportSchema, UmsError } from '#src/telemetry/errors.ts';
import { approachOf } from './approach.ts';
import {
  approachSchema,
  memoryReportSchema,
  type Migration,
  type MigrateOptions,
  type MigrationEvent,
  migrateOptionsSchema,
  migrationEventSchema,
  type Technique,
  techniqueSchema,
} from './schema.ts';
import { DESTINATION_STATES, isFinal, type MigrationState, mustLast, type Role, SOURCE_STATES } from './states.ts';

/**
 * The durable record of migrations. A transition is a compare-and-swap that writes the event users see in the same
 * transaction, so what was shown is what happened, and an agent killed between any two instructions finds itself in a
 * named state. SQLite in WAL mode: a transition also survives a power cut (synchronous = FULL), if its state must. Each
 * flush to a disk that is busy may take longer than all the rest of a freeze.
 */
const SCHEMA = `
create table if not exists migrations (
  id text primary key,
  role text not null check (role in ('source', 'destination')),
  state text not null,
  service_uid text not null,
  service text not null,
  engine text not null,
  engine_id text not null,
  handle text not null,
  source text not null,
  destination text not null,
  options text not null,
  specification text not null,
  data text not null default '{}',
  started_at real not null,
  ended_at real,
  downtime_ms real,
  bytes_on_wire integer not null default 0,
  state_bytes integer not null default 0,
  error text,
  in_doubt integer not null default 0,
  cancel_requested integer not null default 0,
  peer_told integer not null default 1
) strict;
create table if not exists events (
  migration text not null references migrations(id),
  seq integer not null,
  at real not null,
  body text not null,
  primary key (migration, seq)
) strict, without rowid;
create table if not exists steps (
  migration text not null references migrations(id),
  name text not null,
  start_at real not null,
  end_at real,
  primary key (migration, name)
) strict;
create table if not exists locks (
  engine text not null,
  engine_id text not null,
  migration text not null references migrations(id),
  primary key (engine, engine_id)
) strict, without rowid;
create table if not exists services (
  engine text not null,
  engine_id text not null,
  uid text not null unique,
  handle text not null,
  primary key (engine, engine_id)
) strict, without rowid;
`;

const stateSchema = z.union([z.enum(SOURCE_STATES), z.enum(DESTINATION_STATES)]);
const dataSchema = z.record(z.string(), z.json());

const rowSchema = z.object({
  id: z.string(),
  role: z.enum(['source', 'destination']),
  state: stateSchema,
  service_uid: z.string(),
  service: z.string(),
  engine: engineSchema,
  engine_id: z.string(),
  handle: z.string(),
  source: z.string(),
  destination: z.string(),
  options: z.string().transform((text): MigrateOptions => migrateOptionsSchema.parse(JSON.parse(text))),
  specification: z.string(),
  data: z.string().transform((text) => dataSchema.parse(JSON.parse(text))),
  started_at: z.number(),
  ended_at: z.number().nullable(),
  downtime_ms: z.number().nullable(),
  bytes_on_wire: z.number(),
  state_bytes: z.number(),
  error: z
    .string()
    .nullable()
    .transform((text): ErrorReport | null => (text === null ? null : errorReportSchema.parse(JSON.parse(text)))),
  in_doubt: z.number().transform((value) => value === 1),
  cancel_requested: z.number().transform((value) => value === 1),
  peer_told: z.number().transform((value) => value === 1),
});
export type Row = z.infer<typeof rowSchema>;

export interface NewMigration {
  id: string;
  role: Role;
  state: MigrationState;
  serviceUid: string;
  service: string;
  engine: Row['engine'];
  engineId: string;
  handle: string;
  source: string;
  destination: string;
  options: MigrateOptions;
  /** JSON text of the Specification. */
  specification: string;
  data: Row['data'];
}

/** Fields of a row that steps may change without changing the state. */
export interface RowUpdate {
  handle?: string;
  engine_id?: string;
  specification?: string;
  data?: Row['data'];
  downtime_ms?: number;
  state_bytes?: number;
  error?: ErrorReport | null;
  in_doubt?: boolean;
  cancel_requested?: boolean;
  peer_told?: boolean;
}

/** Distributes over the union, so that each kind of event keeps its own fields. */
type WithoutEnvelope<T> = T extends unknown ? Omit<T, 'seq' | 'at' | 'id'> : never;
export type EventBody = WithoutEnvelope<MigrationEvent>;

/** Progress events would fill the journal; beyond this many a migration's further ones are shown but not kept. */
const KEPT_EVENTS_MAX = 2000;

export function newMigrationId(): string {
  const alphabet = '0123456789abcdefghijklmnopqrstuvwxyz';
  return `m-${[...randomBytes(20)].map((byte) => alphabet[byte % 36]).join('')}`;
}

export class Journal {
  readonly database: DatabaseSync;
  readonly #live = new EventEmitter();
  readonly #nextSeq = new Map<string, number>();
  /** Bytes on the wire since the last transition, which writes them: each write of its own would cost a flush to disk. */
  readonly #wire = new Map<string, number>();
  readonly #heard = new Map<string, number>();
  readonly #startedAt = Date.now();

  constructor(database: DatabaseSync) {
    this.database = database;
    database.exec(
      'pragma journal_mode = wal; pragma synchronous = full; pragma foreign_keys = on; pragma busy_timeout = 5000;',
    );
    database.exec(SCHEMA);
    this.#live.setMaxListeners(0);
  }

  #transaction<T>(body: () => T): T {
    this.database.exec('begin immediate');
    try {
      const result = body();
      this.database.exec('commit');
      return result;
    } catch (error) {
      this.database.exec('rollback');
      throw error;
    }
  }

  /** What is written here may be lost in a power cut, until something is written that may not. */
  #fleetingly<T>(write: () => T): T {
    this.database.exec('pragma synchronous = normal');
    try {
      return write();
    } finally {
      this.database.exec('pragma synchronous = full');
    }
  }

  /** Records a migration and takes the lock on its service in one transaction; a second one is refused. */
  insert(migration: NewMigration): Row {
    const now = Date.now();
    this.#transaction(() => {
      this.database
        .prepare(
          `insert into migrations (id, role, state, service_uid, service, engine, engine_id, handle, source, destination, options, specification, data, started_at)
           values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
        )
        .run(
          migration.id,
          migration.role,
          migration.state,
          migration.serviceUid,
          migration.service,
          migration.engine,
          migration.engineId,
          migration.handle,
          migration.source,
          migration.destination,
          JSON.stringify(migration.options),
          migration.specification,
          JSON.stringify(migration.data),
          now,
        );
      if (migration.engineId !== '') this.#lock(migration.engine, migration.engineId, migration.id);
      this.database
        .prepare('insert into steps (migration, name, start_at) values (?, ?, ?)')
        .run(migration.id, migration.state, now);
    });
    // It has just been heard of, however long this agent runs already.
    this.touch(migration.id);
    this.emit(migration.id, { event: 'state', from: '', state: migration.state });
    return this.get(migration.id);
  }

  #lock(engine: string, engineId: string, id: string): void {
    const holder = this.lockHolder(engine, engineId);
    if (holder !== undefined && holder !== id) {
      throw new UmsError('UMS_E_SERVICE_BUSY', {
        message: `The service already takes part in migration ${holder}.`,
        fault: 'user',
        state: 'That migration goes on undisturbed.',
        mend: `Wait for it (ums show ${holder}) or cancel it (ums cancel ${holder}).`,
      });
    }
    this.database
      .prepare('insert or ignore into locks (engine, engine_id, migration) values (?, ?, ?)')
      .run(engine, engineId, id);
  }

  /**
   * Takes the lock for a service that only came to exist during the migration (the destination's copy). A power cut may undo
   * it, as the transition that follows does not.
   */
  lock(engine: string, engineId: string, id: string): void {
    this.#fleetingly(() => this.#transaction(() => this.#lock(engine, engineId, id)));
  }

  lockHolder(engine: string, engineId: string): string | undefined {
    const row = this.database
      .prepare('select migration from locks where engine = ? and engine_id = ?')
      .get(engine, engineId);
    return row === undefined ? undefined : z.object({ migration: z.string() }).parse(row).migration;
  }

  /**
   * The compare-and-swap of the saga: true when this call made the transition. A final state also ends the row and
   * frees the service's lock.
   */
  transition(id: string, from: MigrationState, to: MigrationState): boolean {
    const swap = () => this.#transaction(() => this.#swap(id, from, to));
    const done = mustLast(this.#roleOf(id), to) ? swap() : this.#fleetingly(swap);
    if (done) {
      this.#wire.delete(id);
      if (isFinal(to)) this.#heard.delete(id);
      this.#publishLast(id);
      if (isFinal(to)) this.emit(id, { event: 'ended', migration: this.view(id) });
    }
    return done;
  }

  #swap(id: string, from: MigrationState, to: MigrationState): boolean {
    const now = Date.now();
    const result = this.database
      .prepare(
        'update migrations set state = ?, in_doubt = 0, ended_at = ?, bytes_on_wire = bytes_on_wire + ? where id = ? and state = ?',
      )
      .run(to, isFinal(to) ? now : null, this.#wire.get(id) ?? 0, id, from);
    if (result.changes !== 1) return false;
    this.database.prepare('update steps set end_at = ? where migration = ? and name = ?').run(now, id, from);
    if (isFinal(to)) {
      this.database.prepare('delete from locks where migration = ?').run(id);
    } else {
      this.database
        .prepare('insert or ignore into steps (migration, name, start_at) values (?, ?, ?)')
        .run(id, to, now);
    }
    this.#insertEvent(id, { event: 'state', from, state: to });
    return true;
  }

  #roleOf(id: string): Role {
    const row = this.database.prepare('select role from migrations where id = ?').get(id);
    return row?.['role'] === 'destination' ? 'destination' : 'source';
  }

  update(id: string, update: RowUpdate): void {
    const columns: string[] = [];
    const values: (string | number | null)[] = [];
    for (const [name, value] of Object.entries(update)) {
      if (value === undefined) continue;
      columns.push(`${name} = ?`);
      if (typeof value === 'boolean') values.push(value ? 1 : 0);
      else values.push(typeof value === 'object' && value !== null ? JSON.stringify(value) : value);
    }
    if (columns.length === 0) return;
    this.database.prepare(`update migrations set ${columns.join(', ')} where id = ?`).run(...values, id);
  }

  /** Adds to the bytes that this migration has sent and received. */
  addWire(id: string, bytes: number): void {
    this.#wire.set(id, (this.#wire.get(id) ?? 0) + bytes);
  }

  /** Notes that the peer of a migration was heard. Kept in memory: after a restart the lease begins anew. */
  touch(id: string): void {
    this.#heard.set(id, Date.now());
  }

  /** Milliseconds since the peer of a migration was last heard, or since this agent started. */
  silence_ms(id: string): number {
    return Date.now() - (this.#heard.get(id) ?? this.#startedAt);
  }

  /** Merges into the free-form data of a row. */
  merge(id: string, data: Row['data']): void {
    this.update(id, { data: { ...this.get(id).data, ...data } });
  }

  /**
   * As `merge` and `update`, but a power cut may undo it: for what says nothing any more after one, or comes before a
   * transition that lasts.
   */
  jot(id: string, data: Row['data'], update: RowUpdate = {}): void {
    this.#fleetingly(() => this.update(id, { ...update, data: { ...this.get(id).data, ...data } }));
  }

  find(id: string): Row | undefined {
    const row = this.database.prepare('select * from migrations where id = ?').get(id);
    return row === undefined ? undefined : rowSchema.parse(row);
  }

  get(id: string): Row {
    const row = this.find(id);
    if (row === undefined) {
      throw new UmsError('UMS_E_MIGRATION_UNKNOWN', {
        message: `There is no migration ${id} here.`,
        fault: 'user',
        mend: 'List them with: ums migrations',
      });
    }
    return row;
  }

  #rows(sql: string, ...values: (string | number)[]): Row[] {
    return this.database
      .prepare(sql)
      .all(...values)
      .map((row: Record<string, SQLOutputValue>) => rowSchema.parse(row));
  }

  all(): Row[] {
    return this.#rows('select * from migrations order by started_at desc limit 1000');
  }

  unfinished(): Row[] {
    return this.#rows(`select * from migrations where state not in ('done', 'aborted') order by started_at`);
  }

  /** Ended migrations whose peer has not been told how they ended. */
  untold(): Row[] {
    return this.#rows(`select * from migrations where state in ('done', 'aborted') and peer_told = 0`);
  }

  emit(id: string, body: EventBody): void {
    const kept = this.#fleetingly(() => this.#transaction(() => this.#insertEvent(id, body)));
    if (kept) this.#publishLast(id);
    else this.#live.emit(id, migrationEventSchema.parse({ ...body, seq: this.#seq(id), at: Date.now(), id }));
  }

  #seq(id: string): number {
    const known = this.#nextSeq.get(id);
    if (known !== undefined) return known;
    const row = this.database.prepare('select coalesce(max(seq), 0) as last from events where migration = ?').get(id);
    return z.object({ last: z.number() }).parse(row).last + 1;
  }

  #insertEvent(id: string, body: EventBody): boolean {
    const seq = this.#seq(id);
    if (body.event === 'progress' && seq > KEPT_EVENTS_MAX) return false;
    const at = Date.now();
    const event = { ...body, seq, at, id };
    this.database
      .prepare('insert into events (migration, seq, at, body) values (?, ?, ?, ?)')
      .run(id, seq, at, JSON.stringify(event));
    this.#nextSeq.set(id, seq + 1);
    return true;
  }

  #publishLast(id: string): void {
    const last = this.events(id, this.#seq(id) - 2).at(-1);
    if (last !== undefined) this.#live.emit(id, last);
  }

  events(id: string, after: number): MigrationEvent[] {
    return this.database
      .prepare('select body from events where migration = ? and seq > ? order by seq')
      .all(id, after)
      .map((row) => migrationEventSchema.parse(JSON.parse(z.object({ body: z.string() }).parse(row).body)));
  }

  /** Calls back for every event from now on; returns how to stop. */
  subscribe(id: string, listener: (event: MigrationEvent) => void): () => void {
    this.#live.on(id, listener);
    return () => this.#live.off(id, listener);
  }

  /** The uid by which all systems know a service; made at its first migration and carried along. */
  serviceUid(engine: string, engineId: string): string | undefined {
    const row = this.database
      .prepare('select uid from services where engine = ? and engine_id = ?')
      .get(engine, engineId);
    return row === undefined ? undefined : z.object({ uid: z.string() }).parse(row).uid;
  }

  adoptService(engine: string, engineId: string, uid: string, handle: string): void {
    this.#transaction(() => {
      this.database.prepare('delete from services where uid = ?').run(uid);
      this.database
        .prepare('insert or replace into services (engine, engine_id, uid, handle) values (?, ?, ?, ?)')
        .run(engine, engineId, uid, handle);
    });
  }

  /** The uid of a service that is here, made now if it has none. */
  knowService(engine: string, engineId: string, handle: string): string {
    const uid = this.serviceUid(engine, engineId) ?? randomUUID();
    this.adoptService(engine, engineId, uid, handle);
    return uid;
  }

  serviceByUid(uid: string): { engine: string; engineId: string; handle: string } | undefined {
    const row = this.database.prepare('select engine, engine_id, handle from services where uid = ?').get(uid);
    if (row === undefined) return undefined;
    const parsed = z.object({ engine: z.string(), engine_id: z.string(), handle: z.string() }).parse(row);
    return { engine: parsed.engine, engineId: parsed.engine_id, handle: parsed.handle };
  }

  /** What the outside sees of a migration. */
  view(id: string): Migration {
    const row = this.get(id);
    const steps = this.database
      .prepare('select name, start_at, end_at from steps where migration = ? order by rowid')
      .all(id)
      .map((step) => z.object({ name: z.string(), start_at: z.number(), end_at: z.number().nullable() }).parse(step));
    return {
      id: row.id,
      role: row.role,
      state: row.state,
      in_doubt: row.in_doubt,
      service: row.service,
      engine: row.engine,
      source: row.source,
      destination: row.destination,
      technique: techniqueOf(row),
      approach: approachSchema.safeParse(row.data['approach']).data ?? approachOf(row.engine),
      started_at: row.started_at,
      ended_at: row.ended_at,
      downtime_ms: row.downtime_ms,
      total_ms: row.ended_at === null ? null : row.ended_at - row.started_at,
      bytes_on_wire: row.bytes_on_wire + (this.#wire.get(id) ?? 0),
      state_bytes: row.state_bytes,
      steps: steps.map((step) => ({
        name: step.name,
        start_ms: step.start_at - row.started_at,
        duration_ms: (step.end_at ?? Date.now()) - step.start_at,
      })),
      memory: row.data['memory'] === undefined ? null : memoryReportSchema.parse(row.data['memory']),
      error: row.error,
    };
  }
}

/** Until the plan is made it is what the user asked for, and cold as long as that is left to the agent. */
function techniqueOf(row: Row): Technique {
  const plan = z.object({ technique: techniqueSchema }).safeParse(row.data['plan']);
  if (plan.success) return plan.data.technique;
  return row.options.technique === 'auto' ? 'cold' : row.options.technique;
}
