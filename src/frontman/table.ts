import type { DatabaseSync } from 'node:sqlite';
import { z } from 'zod';
import type { FrontmanRequest, Route, Target } from './contract.ts';

const SCHEMA = `
create table if not exists frontmen (
  id text primary key,
  service text not null,
  service_uid text not null,
  listen_address text not null,
  listen_port integer not null,
  target_port integer not null,
  mode text not null check (mode in ('tcp', 'http')),
  hold_limit_ms integer not null,
  unique (listen_address, listen_port)
) strict;
create table if not exists frontman_routes (
  service_uid text primary key,
  kind text not null check (kind in ('here', 'peer')),
  peer text,
  state text not null check (state in ('open', 'holding')),
  holder text,
  check ((kind = 'peer') = (peer is not null)),
  check ((state = 'holding') = (holder is not null))
) strict;
`;

const frontmanRowSchema = z.object({
  id: z.string(),
  service: z.string(),
  service_uid: z.string(),
  listen_address: z.string(),
  listen_port: z.int(),
  target_port: z.int(),
  mode: z.enum(['tcp', 'http']),
  hold_limit_ms: z.int(),
});
const routeRowSchema = z.object({
  service_uid: z.string(),
  kind: z.enum(['here', 'peer']),
  peer: z.string().nullable(),
  state: z.enum(['open', 'holding']),
  holder: z.string().nullable(),
});

export interface FrontmanRecord extends FrontmanRequest {
  id: string;
  serviceUid: string;
}

/** What the Frontmen must remember over a restart of the agent. */
export class FrontmanTable {
  readonly #database: DatabaseSync;

  constructor(database: DatabaseSync) {
    this.#database = database;
    database.exec(SCHEMA);
  }

  frontmen(): FrontmanRecord[] {
    const rows = this.#database.prepare('select * from frontmen order by id').all();
    return rows.map((raw) => {
      const row = frontmanRowSchema.parse(raw);
      return {
        id: row.id,
        service: row.service,
        serviceUid: row.service_uid,
        listen: { address: row.listen_address, port: row.listen_port },
        port: row.target_port,
        mode: row.mode,
        holdLimit_ms: row.hold_limit_ms,
      };
    });
  }

  insert(record: FrontmanRecord): void {
    this.#database
      .prepare(
        `insert into frontmen (id, service, service_uid, listen_address, listen_port, target_port, mode, hold_limit_ms)
         values (?, ?, ?, ?, ?, ?, ?, ?)`,
      )
      .run(
        record.id,
        record.service,
        record.serviceUid,
        record.listen.address,
        record.listen.port,
        record.port,
        record.mode,
        record.holdLimit_ms,
      );
  }

  remove(id: string): void {
    this.#database.prepare('delete from frontmen where id = ?').run(id);
  }

  routes(): Map<string, Route> {
    const routes = new Map<string, Route>();
    for (const raw of this.#database.prepare('select * from frontman_routes').all()) {
      const row = routeRowSchema.parse(raw);
      const target: Target =
        row.kind === 'peer' && row.peer !== null ? { kind: 'peer', peer: row.peer } : { kind: 'here' };
      routes.set(row.service_uid, { target, state: row.state, holder: row.holder });
    }
    return routes;
  }

  setRoute(serviceUid: string, route: Route): void {
    this.#database
      .prepare(
        `insert into frontman_routes (service_uid, kind, peer, state, holder) values (?, ?, ?, ?, ?)
         on conflict (service_uid) do update
         set kind = excluded.kind, peer = excluded.peer, state = excluded.state, holder = excluded.holder`,
      )
      .run(
        serviceUid,
        route.target.kind,
        route.target.kind === 'peer' ? route.target.peer : null,
        route.state,
        route.holder,
      );
  }

  forgetRoute(serviceUid: string): void {
    this.#database.prepare('delete from frontman_routes where service_uid = ?').run(serviceUid);
  }
}
